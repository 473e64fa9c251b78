//! Connections: how many there are, how long one may keep its place without asking anything, and how they end.
//!
//! Who connects has shown no key yet, so this is where a stranger's cost is bounded.

use axum::{Router, body::Body, extract::Request};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use rustix::process::{Resource, getrlimit};
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
};
use tower::ServiceExt as _;

/// What connections may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// How many there are at a time; who comes then waits to be accepted.
    connections: usize,
    /// Until the head of the first request is there.
    first_head: Duration,
    /// Between the requests of a connection, until the head of the next is there.
    next_head: Duration,
    /// How long requests under way may take once we are to stop.
    drain: Duration,
}

impl Limits {
    /// A gate holds two or three connections, so these are more than a thousand gates; with heads of 16 KB they take 64 MB. Fewer where the
    /// process may not open as many files, of which 64 are left for the database and the like.
    pub(crate) fn of_this_process() -> Limits {
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let places = usize::try_from(files.saturating_sub(64)).unwrap_or(usize::MAX);
        Limits {
            connections: places.clamp(16, 4_096),
            first_head: Duration::from_secs(10),
            // Proxies keep idle connections for 60 s and close them themselves then, so that no request crosses our closing.
            next_head: Duration::from_secs(75),
            drain: Duration::from_secs(10),
        }
    }
}

/// Answers connections until `shutdown` ends, then what is under way.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Router,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let stop = watch::Sender::new(false);
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let next = async {
            // Never closed, so there is always one in the end.
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = &mut shutdown => break,
            next = next => next,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let answered = answer(stream, app.clone(), limits, stop.subscribe());
                connections.spawn(async move {
                    let _place = place;
                    answered.await;
                });
            }
            // Of a client that has gone again, or too many open files: in a moment there may be fewer.
            Err(error) => {
                tracing::warn!(cause = %error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    stop.send_replace(true);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.drain, all).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "cut off, not done in time after the order to stop"
        );
        connections.shutdown().await;
    }
}

/// Answers one connection's requests, HTTP/1 or HTTP/2.
async fn answer(
    stream: TcpStream,
    app: Router,
    limits: Limits,
    mut stopping: watch::Receiver<bool>,
) {
    let arrived = watch::Sender::new(false);
    let mut first = arrived.subscribe();
    let service = service_fn(move |request: Request<Incoming>| {
        arrived.send_replace(true);
        app.clone().oneshot(request.map(Body::new))
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.next_head);
    // A peer that is gone without a word answers no ping.
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.next_head)
        .keep_alive_timeout(limits.first_head);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let silent = async {
        let arrival = first.wait_for(|arrived| *arrived);
        if tokio::time::timeout(limits.first_head, arrival)
            .await
            .is_ok()
        {
            std::future::pending::<()>().await;
        }
    };
    let stop = async {
        // Whoever could say so is gone with an error, which is to stop as well.
        let _ = stopping.wait_for(|stopping| *stopping).await;
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = silent => return,
        () = stop => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(cause = %error, "a connection broke off");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use std::net::SocketAddr;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        sync::oneshot,
        task::JoinHandle,
        time::timeout,
    };

    const LONG: Duration = Duration::from_secs(60);
    const LIMITS: Limits = Limits {
        connections: 8,
        first_head: LONG,
        next_head: LONG,
        drain: LONG,
    };

    async fn started(limits: Limits) -> (SocketAddr, oneshot::Sender<()>, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new()
            .route("/", get(|| async { "hello" }))
            .route("/never", get(std::future::pending::<()>));
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(serve(listener, app, limits, async move {
            let _ = stopped.await;
        }));
        (address, stop, serving)
    }

    async fn sent(address: SocketAddr, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    /// All that still comes, until the other side closes.
    async fn rest(mut stream: TcpStream) -> String {
        let mut text = Vec::new();
        let reading = stream.read_to_end(&mut text);
        // A connection may also be reset; what counts is that it ends.
        let _ = timeout(Duration::from_secs(20), reading).await.unwrap();
        String::from_utf8_lossy(&text).into_owned()
    }

    const ONE: &str = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

    #[tokio::test]
    async fn who_asks_nothing_is_closed() {
        let (address, _stop, _) = started(Limits {
            first_head: Duration::from_millis(100),
            ..LIMITS
        })
        .await;
        // Nothing, half a head, the begin of HTTP/2's preface, and that without a request.
        for text in [
            "",
            "GET / HTTP/1.1\r\nhost: ",
            "PRI * HT",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ] {
            let got = rest(sent(address, text).await).await;
            assert!(!got.contains("200 OK"), "{text}: {got}");
        }
        assert!(rest(sent(address, ONE).await).await.ends_with("hello"));
    }

    #[tokio::test]
    async fn who_asks_nothing_more_is_closed() {
        let (address, _stop, _) = started(Limits {
            next_head: Duration::from_millis(100),
            ..LIMITS
        })
        .await;
        let kept = ONE.replace("connection: close\r\n", "");
        let got = rest(sent(address, &format!("{kept}GET / HT")).await).await;
        assert_eq!(got.matches("hello").count(), 1, "{got}");
    }

    #[tokio::test]
    async fn no_more_connections_than_there_are_places() {
        let (address, _stop, _) = started(Limits {
            connections: 1,
            ..LIMITS
        })
        .await;
        let first = sent(address, "GET / HTTP/1.1\r\n").await;
        let mut second = sent(address, ONE).await;
        let mut byte = [0];
        let early = timeout(Duration::from_millis(200), second.read(&mut byte)).await;
        assert!(early.is_err(), "answered beside the first");
        drop(first);
        assert!(rest(second).await.ends_with("hello"));
    }

    #[tokio::test]
    async fn who_is_slow_does_not_keep_it_from_stopping() {
        let (address, stop, serving) = started(Limits {
            drain: Duration::from_millis(100),
            ..LIMITS
        })
        .await;
        let kept = ONE.replace("connection: close\r\n", "");
        let mut slow = sent(address, &kept).await;
        // Once the first is answered, the connection is there.
        slow.read_u8().await.unwrap();
        slow.write_all(kept.replace("/ ", "/never ").as_bytes())
            .await
            .unwrap();
        stop.send(()).unwrap();
        timeout(Duration::from_secs(20), serving)
            .await
            .unwrap()
            .unwrap();
    }
}
