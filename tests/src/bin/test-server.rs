//! A control plane for many tests: started here, used through its kubeconfig, ended with this program.
//!
//! Prints the kubeconfig's path, one line, when the server is ready, and ends when its standard input does: with
//! whoever started it, however that ends.

#![forbid(unsafe_code)]

use std::io;

use hawser_tests::api_server::ApiServer;

fn main() -> io::Result<()> {
    let server = ApiServer::start();
    println!("{}", server.kubeconfig().display());
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}
