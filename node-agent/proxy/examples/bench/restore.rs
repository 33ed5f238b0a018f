//! A program that makes a packet new before each run of another one.
//!
//! BPF_PROG_TEST_RUN repeats a program over one packet and restores nothing, so a program that translates would see
//! its own result the next time. This one writes the headers back from a template, with the next flow's port and
//! address in them, and ends in a tail call of the measured program. Its own cost is measured with a program that does
//! nothing in that one's place, and subtracted. Written as instructions, since it is part of no datapath.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};

const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;

const MAP_ARRAY: u32 = 2;
const MAP_PROG_ARRAY: u32 = 3;
const PROG_SCHED_CLS: u32 = 3;
const PROG_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;

/// Room for Ethernet, IPv6 and TCP headers without options.
const TEMPLATE_LEN: usize = 80;
/// Where the template lies in the state; before it is the number of the next packet.
const TEMPLATE: i16 = 16;
const STATE_LEN: usize = TEMPLATE as usize + TEMPLATE_LEN;

/// A packet, and which of its bytes tell flows apart.
pub(crate) struct Template {
    pub(crate) packet: Vec<u8>,
    /// Bytes of headers, which are restored.
    pub(crate) header_len: usize,
    /// Where the port lies that counts.
    pub(crate) port_offset: usize,
    /// Where one byte of an address lies that counts what the port's 15 bits cannot.
    pub(crate) address_offset: usize,
    /// Number of flows, a power of two.
    pub(crate) flows: u32,
}

/// First of the ports that count.
const FIRST_PORT: i32 = 1024;
const PORT_BITS: i32 = 15;

/// Where the measured programs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Tc,
    /// At XDP, for packets that arrive at this interface.
    Xdp(u32),
}

/// What a run gave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Average over the repeats, the wrapper's own cost in it.
    pub(crate) nanoseconds: u32,
    pub(crate) verdict: i32,
}

/// The wrapper, ready for one template.
pub(crate) struct Restorer {
    program: OwnedFd,
    state: OwnedFd,
    target: OwnedFd,
    nothing: OwnedFd,
    template: Template,
    hook: Hook,
}

impl Restorer {
    pub(crate) fn new(hook: Hook, template: Template) -> Result<Self> {
        anyhow::ensure!(template.header_len <= TEMPLATE_LEN, "headers of {} bytes", template.header_len);
        anyhow::ensure!(template.flows.is_power_of_two(), "{} flows", template.flows);
        let state = create_map(MAP_ARRAY, STATE_LEN as u32).context("make the state")?;
        let target = create_map(MAP_PROG_ARRAY, 4).context("make the program array")?;
        let nothing = load(hook, &[mov(0, 2), EXIT]).context("load a program that does nothing")?;
        let program =
            load(hook, &instructions(hook, &template, &state, &target)).context("load the wrapper")?;
        Ok(Self { program, state, target, nothing, template, hook })
    }

    /// Runs `target` over `repeat` packets, from the first flow on.
    pub(crate) fn run(&self, target: BorrowedFd<'_>, repeat: u32) -> Result<Run> {
        self.run_from(0, target, repeat)
    }

    /// The same from the flow with the number `first` on.
    pub(crate) fn run_from(&self, first: u64, target: BorrowedFd<'_>, repeat: u32) -> Result<Run> {
        let mut state = [0; STATE_LEN];
        state[..8].copy_from_slice(&first.to_ne_bytes());
        let headers = &self.template.packet[..self.template.header_len];
        state[TEMPLATE as usize..][..headers.len()].copy_from_slice(headers);
        update_map(&self.state, &state).context("write the template")?;
        let target = target.as_raw_fd().to_ne_bytes();
        update_map(&self.target, &target).context("set the program to be measured")?;
        test_run(&self.program, self.hook, &self.template.packet, repeat).context("run")
    }

    /// The wrapper alone.
    pub(crate) fn run_nothing(&self, repeat: u32) -> Result<Run> {
        use std::os::fd::AsFd as _;
        self.run(self.nothing.as_fd(), repeat)
    }
}

/// One instruction, as `struct bpf_insn` has it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    /// The destination in the lower half, the source in the upper.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: to | from << 4, offset, immediate }
}

const EXIT: Instruction = instruction(0x95, 0, 0, 0, 0);

const fn mov(to: u8, value: i32) -> Instruction {
    instruction(0xb7, to, 0, 0, value)
}

const fn copy(to: u8, from: u8) -> Instruction {
    instruction(0xbf, to, from, 0, 0)
}

const fn and(to: u8, value: i32) -> Instruction {
    instruction(0x57, to, 0, 0, value)
}

const fn add(to: u8, value: i32) -> Instruction {
    instruction(0x07, to, 0, 0, value)
}

const fn call(helper: i32) -> Instruction {
    instruction(0x85, 0, 0, 0, helper)
}

/// Loads what a descriptor stands for: a map (`kind` 1), or the address of an array's value (2).
const fn load_map(to: u8, kind: u8, fd: i32) -> [Instruction; 2] {
    [instruction(0x18, to, kind, 0, fd), instruction(0, 0, 0, 0, 0)]
}

fn instructions(hook: Hook, template: &Template, state: &OwnedFd, target: &OwnedFd) -> Vec<Instruction> {
    const SKB_STORE_BYTES: i32 = 9;
    const XDP_STORE_BYTES: i32 = 190;
    const TAIL_CALL: i32 = 12;
    let [state_low, state_high] = load_map(7, 2, state.as_raw_fd());
    let [target_low, target_high] = load_map(2, 1, target.as_raw_fd());
    vec![
        copy(6, 1),
        state_low,
        state_high,
        // r8: the number of this packet's flow. What is stored is the next.
        instruction(0x79, 8, 7, 0, 0),
        copy(9, 8),
        add(9, 1),
        instruction(0x7b, 7, 9, 0, 0),
        and(8, (template.flows - 1) as i32),
        // Its lower bits are the port, in network order.
        copy(9, 8),
        and(9, (1 << PORT_BITS) - 1),
        add(9, FIRST_PORT),
        instruction(0xdc, 9, 0, 0, 16),
        instruction(0x6b, 7, 9, TEMPLATE + template.port_offset as i16, 0),
        // The others are a byte of the address.
        instruction(0x77, 8, 0, 0, PORT_BITS),
        instruction(0x73, 7, 8, TEMPLATE + template.address_offset as i16, 0),
        // The headers are written over what the last run made of them.
        copy(1, 6),
        mov(2, 0),
        copy(3, 7),
        add(3, TEMPLATE.into()),
        mov(4, template.header_len as i32),
        mov(5, 0),
        call(if hook == Hook::Tc { SKB_STORE_BYTES } else { XDP_STORE_BYTES }),
        copy(1, 6),
        target_low,
        target_high,
        mov(3, 0),
        call(TAIL_CALL),
        // Only reached when the array is empty.
        mov(0, 2),
        EXIT,
    ]
}

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

fn create_map(kind: u32, value_size: u32) -> io::Result<OwnedFd> {
    let mut attribute = MapCreate { kind, key_size: 4, value_size, max_entries: 1 };
    // SAFETY: the attribute holds no address; the result is a descriptor of our own.
    unsafe { bpf(MAP_CREATE, &mut attribute).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

#[repr(C)]
#[derive(Default)]
struct MapUpdate {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Writes the only entry. `value` has the size that the map was made with.
fn update_map(map: &OwnedFd, value: &[u8]) -> io::Result<()> {
    let key = 0u32;
    let mut attribute = MapUpdate {
        map: map.as_raw_fd() as u32,
        key: &raw const key as u64,
        value: value.as_ptr() as u64,
        ..MapUpdate::default()
    };
    // SAFETY: key and value outlive the call and have the map's sizes.
    unsafe { bpf(MAP_UPDATE, &mut attribute) }.map(drop)
}

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    attach_type: u32,
}

fn load(hook: Hook, instructions: &[Instruction]) -> Result<OwnedFd> {
    let mut log = vec![0u8; 1 << 16];
    let mut attribute = ProgLoad {
        kind: if hook == Hook::Tc { PROG_SCHED_CLS } else { PROG_XDP },
        attach_type: if hook == Hook::Tc { 0 } else { ATTACH_XDP },
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 1,
        log_size: log.len() as u32,
        log: log.as_mut_ptr() as u64,
        ..ProgLoad::default()
    };
    // SAFETY: instructions, license and log outlive the call; the result is a descriptor of our own.
    let loaded = unsafe { bpf(PROG_LOAD, &mut attribute).map(|fd| OwnedFd::from_raw_fd(fd)) };
    loaded.with_context(|| {
        let end = log.iter().position(|byte| *byte == 0).unwrap_or(0);
        String::from_utf8_lossy(&log[..end]).into_owned()
    })
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    verdict: u32,
    len_in: u32,
    len_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_len_in: u32,
    context_len_out: u32,
    context_in: u64,
    context_out: u64,
    rest: u64,
}

fn test_run(program: &OwnedFd, hook: Hook, packet: &[u8], repeat: u32) -> io::Result<Run> {
    let ifindex = if let Hook::Xdp(ifindex) = hook { ifindex } else { 0 };
    // `struct xdp_md`: where the packet begins and ends, its metadata, interface and queue.
    let context = [0, packet.len() as u32, 0, ifindex, 0, 0];
    let has_context = hook != Hook::Tc;
    let mut attribute = TestRun {
        context_len_in: if has_context { size_of_val(&context) as u32 } else { 0 },
        context_in: if has_context { &raw const context as u64 } else { 0 },
        program: program.as_raw_fd() as u32,
        len_in: packet.len() as u32,
        data_in: packet.as_ptr() as u64,
        repeat,
        ..TestRun::default()
    };
    // SAFETY: packet and context outlive the call, which writes no data without a buffer for it.
    unsafe { bpf(PROG_TEST_RUN, &mut attribute) }?;
    Ok(Run { nanoseconds: attribute.duration, verdict: attribute.verdict as i32 })
}

/// # Safety
/// All addresses in `attribute` point to memory of the sizes that the command reads or writes.
unsafe fn bpf<T>(command: libc::c_long, attribute: &mut T) -> io::Result<i32> {
    // SAFETY: the caller vouches for the addresses; the structure itself lives for the length of the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attribute), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
