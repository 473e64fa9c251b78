//! A load generator that says nothing about itself: one prepared HTTP/1.1 request, sent again and again over kept-alive connections
//! by one thread each. It accepts no answer but 200, so that a figure is never that of a refusal.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// Above any answer of the stand-in's.
const RESPONSE_BYTES_MAX: usize = 64 * 1024;

/// What to send where.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) address: SocketAddr,
    pub(super) request: &'a [u8],
    pub(super) connections: u32,
}

/// As fast as the connections go. Gives the number of answers.
pub(super) fn closed_loop(target: Target<'_>, duration: Duration) -> Result<u64> {
    let deadline = Instant::now() + duration;
    let counts = on_every_connection(target, |_, connection| {
        let mut count = 0;
        while Instant::now() < deadline {
            connection.exchange(target.request)?;
            count += 1;
        }
        Ok(count)
    })?;
    Ok(counts.into_iter().sum())
}

/// At `rate` per second altogether, whatever the answers take. Gives the latencies, sorted. A request that could not be sent in time,
/// because the one before it was still out, counts from when it should have been sent: else a stall would hide the requests behind it.
pub(super) fn fixed_rate(
    target: Target<'_>,
    rate: u32,
    duration: Duration,
) -> Result<Vec<Duration>> {
    let between = Duration::from_secs(1) / rate;
    let start = Instant::now();
    let latencies = on_every_connection(target, |index, connection| {
        let mut latencies = Vec::new();
        let mut due = start + between * index;
        while due < start + duration {
            let now = Instant::now();
            let from = if now < due {
                thread::sleep(due - now);
                // Sleeping too long is the machine's doing, not the gate's.
                Instant::now()
            } else {
                due
            };
            connection.exchange(target.request)?;
            latencies.push(from.elapsed());
            due += between * target.connections;
        }
        Ok(latencies)
    })?;
    let mut latencies: Vec<Duration> = latencies.into_iter().flatten().collect();
    latencies.sort_unstable();
    Ok(latencies)
}

/// The latency below which this share of a sorted, non-empty list lies.
pub(super) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or_default()
}

fn on_every_connection<T: Send>(
    target: Target<'_>,
    run: impl Fn(u32, &mut Connection) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..target.connections)
            .map(|index| scope.spawn(move || run(index, &mut Connection::open(target.address)?)))
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| bail!("a load thread panicked"))
            })
            .collect()
    })
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self {
            stream,
            buffer: vec![0; RESPONSE_BYTES_MAX],
        })
    }

    /// Sends the request and reads exactly its answer.
    fn exchange(&mut self, request: &[u8]) -> Result<()> {
        self.stream.write_all(request)?;
        let mut filled = 0;
        let mut whole = None;
        while whole.is_none_or(|whole| filled < whole) {
            ensure!(
                filled < self.buffer.len(),
                "an answer is longer than {RESPONSE_BYTES_MAX} bytes"
            );
            let read = self
                .stream
                .read(&mut self.buffer[filled..])
                .context("an answer did not come")?;
            ensure!(read > 0, "the connection was closed instead of an answer");
            filled += read;
            if whole.is_none() {
                whole = answer_length(&self.buffer[..filled])?;
            }
        }
        Ok(())
    }
}

/// The length of head and body, once the head is there.
fn answer_length(received: &[u8]) -> Result<Option<usize>> {
    let Some(head_length) = received
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map(|end| end + 4)
    else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&received[..head_length]).to_ascii_lowercase();
    ensure!(
        head.starts_with("http/1.1 200 "),
        "an answer that is not 200:\n{}",
        String::from_utf8_lossy(received)
    );
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
    if field("transfer-encoding:").is_some() {
        // No answer of the stand-in's has these bytes within.
        return Ok(received
            .ends_with(b"\r\n0\r\n\r\n")
            .then_some(received.len()));
    }
    let length = field("content-length:").context("an answer without a content-length")?;
    Ok(Some(head_length + length.trim().parse::<usize>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_where_its_head_says() {
        assert_eq!(
            answer_length(b"HTTP/1.1 200 OK\r\nContent-Len").unwrap(),
            None
        );
        // 15 + 2 for the status line, 17 + 2 for the header, 2 for the empty line, 5 of body.
        assert_eq!(
            answer_length(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab").unwrap(),
            Some(43)
        );
        let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n";
        assert_eq!(answer_length(chunked).unwrap(), Some(chunked.len()));
        assert_eq!(answer_length(&chunked[..chunked.len() - 3]).unwrap(), None);
        assert!(answer_length(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\n").is_err());
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let sorted: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(
            (percentile(&sorted, 50), percentile(&sorted, 99)),
            (Duration::from_millis(101), Duration::from_millis(199))
        );
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }
}
