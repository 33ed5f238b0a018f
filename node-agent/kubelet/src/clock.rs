//! The agent's clocks: the wall for what is reported, tokio's for delays, so that a jump of the wall clock
//! moves no back-off and tests can pause time.

use jiff::Timestamp;
use tokio::time::Instant;

use crate::pod::Clock;

#[derive(Clone, Copy, Debug)]
pub struct AgentClock {
    started: Instant,
}

impl AgentClock {
    pub fn start() -> Self {
        Self { started: Instant::now() }
    }

    pub fn now(&self) -> Clock {
        Clock { wall: Timestamp::now(), now: self.started.elapsed() }
    }

    /// The moment that a decision names.
    pub fn instant(&self, at: std::time::Duration) -> Instant {
        self.started + at
    }
}
