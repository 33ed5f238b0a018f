//! nftables, by the `nft` program: the crates that speak nfnetlink do not cover NAT expressions, and rules change when
//! the node starts or an address moves, not more often.

use std::process::Stdio;

use tokio::{io::AsyncWriteExt, process::Command};

use crate::Error;

/// Applies `rules` in one transaction.
pub(crate) async fn apply(rules: &str) -> Result<(), Error> {
    let failed = |text: &dyn ToString| Error::Nft(text.to_string());
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(&format!("cannot run nft: {error}")))?;
    if let Some(mut stdin) = nft.stdin.take() {
        stdin.write_all(rules.as_bytes()).await.map_err(|error| failed(&error))?;
    }
    let output = nft.wait_with_output().await.map_err(|error| failed(&error))?;
    if !output.status.success() {
        return Err(failed(&String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(())
}
