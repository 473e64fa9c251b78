//! Envoy, as a proxy-wasm host (ABI 0.2.1): the one file that speaks to it.
//!
//! The SDK dispatches callbacks; its host calls are not used, since they panic on a status they did not expect and on bytes that are not
//! UTF-8, and one panic takes a worker's VM down with every call on it. Here every call returns its status and deals in bytes.
#![expect(unsafe_code, reason = "host calls take raw pointers")]

#[cfg(target_arch = "wasm32")]
use crate::profile::timed;
use proxy_wasm::types::{BufferType, LogLevel, MapType, MetricType};
use std::{
    cell::RefCell,
    ptr::{null, null_mut},
    time::Duration,
};
use tollgate_engine::time::Time;

/// A status other than `OK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(u32);

const OK: u32 = 0;
const NOT_FOUND: u32 = 1;
const EMPTY: u32 = 7;

impl Status {
    /// Somebody else wrote meanwhile.
    pub(crate) const CAS_MISMATCH: Status = Status(8);
    /// What should have been bytes of a known shape is not.
    const PARSE_FAILURE: Status = Status(4);
}

macro_rules! imports {
    ($module:literal $($name:ident($($argument:ident: $type:ty),*);)*) => {
        $(
            #[cfg(target_arch = "wasm32")]
            #[inline]
            #[allow(clippy::too_many_arguments, reason = "Envoy's ABI")]
            unsafe fn $name($($argument: $type),*) -> u32 {
                #[link(wasm_import_module = $module)]
                unsafe extern "C" {
                    fn $name($($argument: $type),*) -> u32;
                }
                // SAFETY: the caller's.
                timed(stringify!($name), || unsafe { $name($($argument),*) })
            }
            /// Where there is no Envoy every call says so (`UNIMPLEMENTED`), so that the crate is checked and tested like any other.
            #[cfg(not(target_arch = "wasm32"))]
            #[allow(clippy::too_many_arguments, reason = "Envoy's ABI")]
            unsafe fn $name($(_: $type),*) -> u32 {
                12
            }
        )*
    };
}

imports! { "env"
    proxy_log(level: u32, text: *const u8, text_size: usize);
    proxy_get_current_time_nanoseconds(time: *mut u64);
    proxy_set_tick_period_milliseconds(period: u32);
    proxy_set_effective_context(context: u32);
    proxy_get_buffer_bytes(kind: u32, start: usize, max: usize, data: *mut *mut u8, size: *mut usize);
    proxy_set_buffer_bytes(kind: u32, start: usize, size: usize, data: *const u8, data_size: usize);
    proxy_get_header_map_pairs(map: u32, data: *mut *mut u8, size: *mut usize);
    proxy_replace_header_map_value(map: u32, name: *const u8, name_size: usize, value: *const u8, value_size: usize);
    proxy_remove_header_map_value(map: u32, name: *const u8, name_size: usize);
    proxy_get_property(path: *const u8, path_size: usize, data: *mut *mut u8, size: *mut usize);
    proxy_set_property(path: *const u8, path_size: usize, value: *const u8, value_size: usize);
    proxy_send_local_response(
        status: u32, details: *const u8, details_size: usize, body: *const u8, body_size: usize,
        headers: *const u8, headers_size: usize, grpc_status: i32
    );
    proxy_continue_stream(stream: u32);
    proxy_close_stream(stream: u32);
    proxy_get_shared_data(key: *const u8, key_size: usize, data: *mut *mut u8, size: *mut usize, cas: *mut u32);
    proxy_set_shared_data(key: *const u8, key_size: usize, value: *const u8, value_size: usize, cas: u32);
    proxy_register_shared_queue(name: *const u8, name_size: usize, queue: *mut u32);
    proxy_enqueue_shared_queue(queue: u32, value: *const u8, value_size: usize);
    proxy_dequeue_shared_queue(queue: u32, data: *mut *mut u8, size: *mut usize);
    proxy_define_metric(kind: u32, name: *const u8, name_size: usize, metric: *mut u32);
    proxy_increment_metric(metric: u32, by: i64);
    proxy_record_metric(metric: u32, value: u64);
    proxy_get_metric(metric: u32, value: *mut u64);
}

imports! { "wasi_snapshot_preview1"
    random_get(buffer: *mut u8, size: usize);
}

fn check(status: u32) -> Result<(), Status> {
    match status {
        OK => Ok(()),
        other => Err(Status(other)),
    }
}

/// Bytes that the host returns through a pointer and a size.
fn returned(call: impl FnOnce(*mut *mut u8, *mut usize) -> u32) -> Result<Vec<u8>, Status> {
    let (mut data, mut size) = (null_mut(), 0);
    check(call(&raw mut data, &raw mut size))?;
    if data.is_null() || size == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the host has got `data` from `proxy_on_memory_allocate(size)`, the SDK's, which makes a boxed slice of `size` bytes and
    // forgets it; the host has filled it and gives it away.
    Ok(unsafe { Vec::from_raw_parts(data, size, size) })
}

/// `NOT_FOUND` (and `EMPTY`, of a queue) is an answer.
fn optional<T>(result: Result<T, Status>) -> Result<Option<T>, Status> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Status(NOT_FOUND | EMPTY)) => Ok(None),
        Err(status) => Err(status),
    }
}

// SAFETY of every call below: pointers and sizes are those of live slices or locals, and the host keeps none of them.

/// Writes a line to Envoy's log.
pub(crate) fn log(level: LogLevel, text: &str) {
    // There is nowhere to report a failure to report.
    let _ = unsafe { proxy_log(level as u32, text.as_ptr(), text.len()) };
}

/// Envoy's wall clock. Should it fail, 1970: then no bundle is valid, and everything is denied.
pub(crate) fn now() -> Time {
    let mut nanos = 0;
    let status = unsafe { proxy_get_current_time_nanoseconds(&raw mut nanos) };
    check(status).map_or(Time::default(), |()| {
        Time::from_micros(i64::try_from(nanos / 1_000).unwrap_or(i64::MAX))
    })
}

/// The same in nanoseconds, for measuring how long things take.
#[cfg(feature = "profile")]
pub(crate) fn nanoseconds() -> u64 {
    #[cfg(target_arch = "wasm32")]
    {
        #[link(wasm_import_module = "env")]
        unsafe extern "C" {
            fn proxy_get_current_time_nanoseconds(time: *mut u64) -> u32;
        }
        let mut nanos = 0;
        // Not itself timed; where it fails, nothing has taken any time.
        let _ = unsafe { proxy_get_current_time_nanoseconds(&raw mut nanos) };
        nanos
    }
    #[cfg(not(target_arch = "wasm32"))]
    0
}

/// 128 bits from the operating system.
pub(crate) fn random() -> Result<u128, Status> {
    // A call costs 0.5 µs whatever it gives.
    const AT_ONCE: usize = 32;
    thread_local! {
        static AHEAD: RefCell<Vec<[u8; 16]>> = const { RefCell::new(Vec::new()) };
    }
    AHEAD.with_borrow_mut(|ahead| {
        if ahead.is_empty() {
            ahead.resize(AT_ONCE, [0; 16]);
            let bytes = ahead.as_flattened_mut();
            let filled = check(unsafe { random_get(bytes.as_mut_ptr(), bytes.len()) });
            if let Err(status) = filled {
                ahead.clear();
                return Err(status);
            }
        }
        let bits = ahead.pop().ok_or(Status::PARSE_FAILURE)?;
        Ok(u128::from_le_bytes(bits))
    })
}

/// How often the current context's root ticks.
pub(crate) fn set_tick_period(period_ms: u32) -> Result<(), Status> {
    check(unsafe { proxy_set_tick_period_milliseconds(period_ms) })
}

/// Makes the following calls in the name of another context, until the callback returns.
pub(crate) fn act_as(context: u32) -> Result<(), Status> {
    check(unsafe { proxy_set_effective_context(context) })
}

/// Resets the current context's stream, towards its caller and its upstream.
pub(crate) fn end_stream() -> Result<(), Status> {
    check(unsafe { proxy_close_stream(proxy_wasm::types::StreamType::HttpResponse as u32) })
}

/// At most `max` bytes of a buffer.
pub(crate) fn buffer(kind: BufferType, max: usize) -> Result<Vec<u8>, Status> {
    let bytes =
        returned(|data, size| unsafe { proxy_get_buffer_bytes(kind as u32, 0, max, data, size) });
    Ok(optional(bytes)?.unwrap_or_default())
}

/// Puts `bytes` in the place of a buffer's first `size`.
pub(crate) fn set_buffer(kind: BufferType, size: usize, bytes: &[u8]) -> Result<(), Status> {
    check(unsafe { proxy_set_buffer_bytes(kind as u32, 0, size, bytes.as_ptr(), bytes.len()) })
}

/// All headers, in the host's form; [`pairs`] reads it.
pub(crate) fn header_map(map: MapType) -> Result<Vec<u8>, Status> {
    returned(|data, size| unsafe { proxy_get_header_map_pairs(map as u32, data, size) })
}

/// A header's name and value.
pub(crate) type Pair<'a> = (&'a [u8], &'a [u8]);

/// Names and values of a header map, each a slice of it. The form: their number, the sizes of each, then each with a zero byte behind;
/// numbers are 32 bits, little-endian.
pub(crate) fn pairs(map: &[u8]) -> Result<Vec<Pair<'_>>, Status> {
    fn read(map: &[u8]) -> Option<Vec<Pair<'_>>> {
        let (count, rest) = map.split_first_chunk::<4>()?;
        let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
        let (sizes, mut text) = rest.split_at_checked(count.checked_mul(8)?)?;
        let mut next = |size: &[u8; 4]| {
            let (item, rest) =
                text.split_at_checked(usize::try_from(u32::from_le_bytes(*size)).ok()?)?;
            text = rest.get(1..)?;
            Some(item)
        };
        let (sizes, _) = sizes.as_chunks::<4>();
        let (sizes, _) = sizes.as_chunks::<2>();
        let mut pairs = Vec::with_capacity(sizes.len());
        for [name, value] in sizes {
            pairs.push((next(name)?, next(value)?));
        }
        Some(pairs)
    }
    if map.is_empty() {
        return Ok(Vec::new());
    }
    read(map).ok_or(Status::PARSE_FAILURE)
}

/// The form that [`pairs`] reads.
fn to_map<V: AsRef<str>>(headers: &[(&str, V)]) -> Vec<u8> {
    // The caller's slices are far below 4 GiB: this is a 32-bit machine.
    let number = |size: usize| u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes();
    let mut map = Vec::from(number(headers.len()));
    for (name, value) in headers {
        map.extend(number(name.len()));
        map.extend(number(value.as_ref().len()));
    }
    for (name, value) in headers {
        for text in [name, value.as_ref()] {
            map.extend(text.as_bytes());
            map.push(0);
        }
    }
    map
}

/// Sets a header to one value.
pub(crate) fn set_header(map: MapType, name: &str, value: &str) -> Result<(), Status> {
    check(unsafe {
        proxy_replace_header_map_value(
            map as u32,
            name.as_ptr(),
            name.len(),
            value.as_ptr(),
            value.len(),
        )
    })
}

/// Takes a header out, every value of it.
pub(crate) fn remove_header(map: MapType, name: &str) -> Result<(), Status> {
    check(unsafe { proxy_remove_header_map_value(map as u32, name.as_ptr(), name.len()) })
}

/// A property of the current stream by its path, parts separated by zero bytes; `None` when there is none.
pub(crate) fn property(path: &str) -> Result<Option<Vec<u8>>, Status> {
    optional(returned(|data, size| unsafe {
        proxy_get_property(path.as_ptr(), path.len(), data, size)
    }))
}

/// Sets a property of the current stream.
pub(crate) fn set_property(path: &str, value: &[u8]) -> Result<(), Status> {
    check(unsafe { proxy_set_property(path.as_ptr(), path.len(), value.as_ptr(), value.len()) })
}

/// Answers the current stream's request. The answer passes the filter's own response callbacks.
pub(crate) fn reply(status: u16, headers: &[(&str, String)], body: &[u8]) -> Result<(), Status> {
    let headers = to_map(headers);
    check(unsafe {
        proxy_send_local_response(
            u32::from(status),
            null(),
            0,
            body.as_ptr(),
            body.len(),
            headers.as_ptr(),
            headers.len(),
            -1, // not gRPC
        )
    })
}

/// Lets the current stream's paused request go on.
pub(crate) fn continue_request() -> Result<(), Status> {
    check(unsafe { proxy_continue_stream(proxy_wasm::types::StreamType::HttpRequest as u32) })
}

/// Names one version of a shared value.
pub(crate) type Cas = u32;

/// A CAS that no version has before four thousand million writes: a write with it succeeds on an absent key only.
pub(crate) const ABSENT: Cas = u32::MAX;

/// A shared value and its version.
pub(crate) fn shared(key: &str) -> Result<Option<(Vec<u8>, Cas)>, Status> {
    let mut cas = 0;
    let value = returned(|data, size| unsafe {
        proxy_get_shared_data(key.as_ptr(), key.len(), data, size, &raw mut cas)
    });
    Ok(optional(value)?.map(|value| (value, cas)))
}

/// Writes a shared value if it still has this version; 0 writes in any case.
pub(crate) fn set_shared(key: &str, value: &[u8], cas: Cas) -> Result<(), Status> {
    check(unsafe {
        proxy_set_shared_data(key.as_ptr(), key.len(), value.as_ptr(), value.len(), cas)
    })
}

/// The queue of this name, shared by all VMs of the same `vm_id`.
pub(crate) fn queue(name: &str) -> Result<u32, Status> {
    let mut queue = 0;
    check(unsafe { proxy_register_shared_queue(name.as_ptr(), name.len(), &raw mut queue) })?;
    Ok(queue)
}

/// Appends to a queue.
pub(crate) fn enqueue(queue: u32, value: &[u8]) -> Result<(), Status> {
    check(unsafe { proxy_enqueue_shared_queue(queue, value.as_ptr(), value.len()) })
}

/// Takes the oldest of a queue; `None` when it is empty.
pub(crate) fn dequeue(queue: u32) -> Result<Option<Vec<u8>>, Status> {
    optional(returned(|data, size| unsafe {
        proxy_dequeue_shared_queue(queue, data, size)
    }))
}

/// The metric of this name, one for all VMs; asking again gives the same.
pub(crate) fn metric(kind: MetricType, name: &str) -> Result<u32, Status> {
    let mut metric = 0;
    check(unsafe { proxy_define_metric(kind as u32, name.as_ptr(), name.len(), &raw mut metric) })?;
    Ok(metric)
}

/// Adds to a counter or a gauge.
pub(crate) fn add(metric: u32, by: i64) -> Result<(), Status> {
    check(unsafe { proxy_increment_metric(metric, by) })
}

/// Sets a gauge, or adds a value to a histogram.
pub(crate) fn record(metric: u32, value: u64) -> Result<(), Status> {
    check(unsafe { proxy_record_metric(metric, value) })
}

/// The value of a counter or a gauge.
pub(crate) fn value_of(metric: u32) -> Result<u64, Status> {
    let mut value = 0;
    check(unsafe { proxy_get_metric(metric, &raw mut value) })?;
    Ok(value)
}

/// Starts an HTTP request to a cluster and gives the token under which the answer comes. To be called from a root's callback only: Envoy
/// drops what a stream has asked when the stream ends.
///
/// The one host call of the SDK's own: its dispatcher panics on an answer to a token that it has not seen. It maps what Envoy may return
/// here (`OK`, `BAD_ARGUMENT`, `INTERNAL_FAILURE`) without a panic.
pub(crate) fn http_call(
    cluster: &str,
    headers: Vec<(&str, &str)>,
    body: &[u8],
    timeout_ms: i64,
) -> Result<u32, Status> {
    let timeout = Duration::from_millis(u64::try_from(timeout_ms).unwrap_or(0));
    let body = (!body.is_empty()).then_some(body);
    #[cfg(target_arch = "wasm32")]
    return proxy_wasm::hostcalls::dispatch_http_call(cluster, headers, body, Vec::new(), timeout)
        .map_err(|status| Status(status as u32));
    #[cfg(not(target_arch = "wasm32"))]
    {
        let _ = (cluster, headers, body, timeout);
        Err(Status(12))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_that_was_written_is_read() {
        let map = to_map(&[(":path", "/v1"), ("x-empty", "")]);
        let read = pairs(&map).unwrap();
        assert_eq!(read, [(&b":path"[..], &b"/v1"[..]), (b"x-empty", b"")]);
        assert_eq!(pairs(&[]), Ok(Vec::new()));
    }

    #[test]
    fn a_map_cut_anywhere_is_refused() {
        let map = to_map(&[("a", "bc"), ("d", "é")]);
        for end in 1..map.len() {
            assert_eq!(pairs(&map[..end]), Err(Status::PARSE_FAILURE), "{end}");
        }
        let mut huge = map;
        huge[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(pairs(&huge), Err(Status::PARSE_FAILURE));
    }
}
