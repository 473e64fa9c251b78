//! HTTP/1.1 in bytes, both ends: a client that sends what no library would, and a server that breaks off where it is told to.
//!
//! One request per connection. Not for the product, nor for anything that a real client or server should be under test with.

use anyhow::{Context as _, Result, ensure};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// Longer than anything here takes, the gate's own waits included.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A request or a response.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// The first line.
    pub start: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// What came of it.
    pub body: Vec<u8>,
}

impl Message {
    /// The last value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<String> {
        let mut values = self.headers.iter().rev();
        values
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.clone())
    }

    /// Word number `at` of the first line.
    #[must_use]
    pub fn word(&self, at: usize) -> &str {
        self.start.split(' ').nth(at).unwrap_or_default()
    }

    /// Reads the head, and of the body as much as comes, but no more than `enough` bytes. Bytes that are not UTF-8 are replaced in the head.
    fn read(from: &mut impl BufRead, enough: usize) -> Result<Message> {
        let mut message = Message::default();
        let line = |from: &mut dyn BufRead| -> Result<String> {
            let mut line = Vec::new();
            from.read_until(b'\n', &mut line)?;
            ensure!(line.ends_with(b"\r\n"), "the other side left in mid-line");
            line.truncate(line.len() - 2);
            Ok(String::from_utf8_lossy(&line).into_owned())
        };
        message.start = line(from)?;
        loop {
            let header = line(from)?;
            if header.is_empty() {
                break;
            }
            let (name, value) = header.split_once(':').context("a header without a colon")?;
            message
                .headers
                .push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        if message.header("transfer-encoding").is_some() {
            while message.body.len() < enough {
                // The end, or the other side has left: then what came is what there is.
                let Ok(size) = line(from) else { break };
                let size = usize::from_str_radix(&size, 16).context("not the size of a chunk")?;
                if size == 0 {
                    break;
                }
                take(from, size, &mut message.body);
                let _ = line(from);
            }
        } else if let Some(length) = message.header("content-length") {
            let length: usize = length.parse().context("`content-length` is no number")?;
            take(from, length.min(enough), &mut message.body);
        } else if message.start.starts_with("HTTP/") {
            take(from, enough, &mut message.body);
        }
        Ok(message)
    }
}

/// Appends `size` bytes, or as many as come.
fn take(from: &mut impl BufRead, size: usize, body: &mut Vec<u8>) {
    // What breaks off is over; the bytes before count.
    let _ = from.take(size as u64).read_to_end(body);
}

/// Sends a request as it is given, and reads the answer: all of it, or `enough` bytes of its body, after which the connection is closed.
///
/// # Errors
/// When nobody answers.
pub fn send(
    to: SocketAddr,
    line: &str,
    headers: &[(String, Vec<u8>)],
    body: &[u8],
    enough: usize,
) -> Result<Message> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut request = format!("{line}\r\n").into_bytes();
    for (name, value) in headers {
        request.extend_from_slice(name.as_bytes());
        request.extend_from_slice(b": ");
        request.extend_from_slice(value);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"connection: close\r\n\r\n");
    request.extend_from_slice(body);
    // An answer may come, and the connection close, before all of a refused body was taken.
    let _ = stream.write_all(&request);
    Message::read(&mut BufReader::new(stream), enough).context("no answer")
}

/// A response with a body of known length.
#[must_use]
pub fn response(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut response = head(status, headers);
    response.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
    response.extend_from_slice(body);
    response
}

/// The head of a response whose chunks follow.
#[must_use]
pub fn chunked(status: u16, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut response = head(status, headers);
    response.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
    response
}

/// One chunk. An empty one ends the body.
#[must_use]
pub fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

fn head(status: u16, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status} -\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.into_bytes()
}

/// A server on a free port of the loopback; stops taking connections when it is dropped.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Server {
    /// Gives each request and its connection to `answer`, in a thread of its own.
    ///
    /// # Errors
    /// When there is no port.
    pub fn start(
        answer: impl Fn(Message, &mut TcpStream) + Send + Sync + 'static,
    ) -> Result<Server> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let server = Server {
            address: listener.local_addr()?,
            stop: Arc::default(),
        };
        let (stop, answer) = (Arc::clone(&server.stop), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let answer = Arc::clone(&answer);
                thread::spawn(move || {
                    let mut stream = stream;
                    let Ok(reader) = stream.try_clone() else {
                        return;
                    };
                    // Whoever leaves in the middle of a request gets no answer.
                    if let Ok(request) = Message::read(&mut BufReader::new(reader), usize::MAX) {
                        answer(request, &mut stream);
                    }
                });
            }
        });
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the listener, so that it sees the sign.
        let _ = TcpStream::connect(self.address);
    }
}
