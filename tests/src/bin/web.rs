//! A web server that listens a moment after its start and answers with its only argument: for tests that look at
//! availability from outside.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::Duration;

fn main() {
    let text = std::env::args().nth(1).unwrap_or_default();
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(0_u16);
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
    let answer = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
    for stream in listener.incoming().flatten() {
        let mut stream = stream;
        let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
        // A client that goes away is none of our concern.
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(answer.as_bytes());
    }
}
