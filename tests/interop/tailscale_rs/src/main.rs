//! Echoes every packet to its source, over Tailscale's Rust client of DERP.
//!
//!     tsderpecho PORT PRIVATE LISTENER
//!
//! The relay is at 127.0.0.1:PORT, with TLS. Prints its key, then `login` after each login. The
//! node with the public key LISTENER gets a packet without content now and then.

use std::{env, io::ErrorKind, net::Ipv4Addr, process::ExitCode, time::Duration};

use ts_derp::{Client, DefaultClient, Error, IpUsage, ServerConnInfo, TlsValidationConfig};
use ts_keys::{NodeKeyPair, NodePublicKey};

/// Between two packets to the listener, and two tries to connect while the relay restarts.
const PAUSE: Duration = Duration::from_millis(100);

fn relay_at(port: u16) -> ServerConnInfo {
    ServerConnInfo {
        hostname: "derp.example.com".to_owned(),
        ipv4: IpUsage::FixedAddr(Ipv4Addr::LOCALHOST),
        ipv6: IpUsage::Disable,
        tls_validation_config: TlsValidationConfig::InsecureForTests,
        https_port: port,
        stun_port: None,
        stun_only: false,
        supports_port_80: false,
    }
}

/// Connects and logs in. The crate panics where nothing listens or TLS fails, so each try is a
/// task of its own, and its end says only that it failed.
async fn login(port: u16, keys: &NodeKeyPair) -> DefaultClient {
    loop {
        let keys = keys.clone();
        let attempt = tokio::spawn(async move { Client::connect(&[relay_at(port)], &keys).await });
        if let Ok(Ok(client)) = attempt.await {
            return client;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Speaks again and again, so that two connections of one key take turns.
async fn speak(client: &DefaultClient, listener: NodePublicKey) -> Result<(), Error> {
    loop {
        client.send_one(listener, b"").await?;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn echo(client: &DefaultClient) -> Result<(), Error> {
    loop {
        let (source, packet) = client.recv_one().await?;
        client.send_one(source, packet.as_ref()).await?;
    }
}

fn is_end_of_stream(error: &Error) -> bool {
    let Error::IoFailure(error) = error else {
        return false;
    };
    matches!(
        error.kind(),
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    )
}

fn arguments() -> Option<(u16, NodeKeyPair, NodePublicKey)> {
    let [_, port, private, listener] = &env::args().collect::<Vec<_>>()[..] else {
        return None;
    };
    Some((
        port.parse().ok()?,
        private.parse().ok()?,
        listener.parse().ok()?,
    ))
}

#[tokio::main]
async fn main() -> ExitCode {
    let Some((port, keys, listener)) = arguments() else {
        eprintln!("usage: tsderpecho PORT PRIVATE LISTENER");
        return ExitCode::from(2);
    };
    println!("{}", keys.public);
    loop {
        let client = login(port, &keys).await;
        println!("login");
        let end = tokio::select! {
            end = echo(&client) => end,
            end = speak(&client, listener) => end,
        };
        if let Err(error) = end
            && !is_end_of_stream(&error)
        {
            println!("{error}");
            return ExitCode::FAILURE;
        }
    }
}
