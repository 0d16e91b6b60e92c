//! The workload of the benchmarks: says when it began, then does one simple thing.
//!
//! `bench-worker BOARD` appends its start time and pid to BOARD and sleeps until a signal ends it.
//! `bench-worker BOARD BYTES` then writes BYTES bytes to its standard output in lines of 100 bytes, and exits.
//!
//! Its own start is part of what is measured, on both sides of every comparison, so it has none worth mentioning: linked
//! statically, no runtime of Rust's before `main`, declarations instead of dependencies so that a plain `rustc` builds
//! it.
#![no_main]
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_long, c_void};

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: c_long,
}

unsafe extern "C" {
    fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int;
    fn getpid() -> c_int;
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn write(fd: c_int, data: *const c_void, length: usize) -> isize;
    fn close(fd: c_int) -> c_int;
    fn atoll(text: *const c_char) -> i64;
    fn pause() -> c_int;
}

const CLOCK_MONOTONIC: c_int = 1;
const WRONLY_APPEND: c_int = 0o2001;
const LINE: usize = 100;
/// Lines written at once.
const LINES: usize = 1000;

/// Written in lines of 100 bytes, a thousand at a time.
static TEXT: [u8; LINE * LINES] = {
    let mut text = [b'x'; LINE * LINES];
    let mut line = 0;
    while line < LINES {
        text[line * LINE + LINE - 1] = b'\n';
        line += 1;
    }
    text
};

/// 0: done; 1: wrong usage; 2: the board cannot be written; 3: standard output cannot.
#[unsafe(no_mangle)]
extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    let mut now = Timespec { seconds: 0, nanoseconds: 0 };
    // SAFETY: the clock exists on every Linux, `now` is a valid timespec.
    unsafe { clock_gettime(CLOCK_MONOTONIC, &raw mut now) };
    if argc < 2 {
        return 1;
    }
    // SAFETY: argv has argc entries, each a string that ends with a zero byte.
    let board = unsafe { open(*argv.add(1), WRONLY_APPEND) };
    // SAFETY: no preconditions.
    let pid = unsafe { getpid() };
    let record =
        [now.seconds.cast_unsigned() * 1_000_000_000 + now.nanoseconds.cast_unsigned(), u64::from(pid.cast_unsigned())];
    // SAFETY: the record is 16 initialised bytes; a bad descriptor is an error, not a fault.
    if unsafe { write(board, record.as_ptr().cast(), 16) } != 16 {
        return 2;
    }
    // SAFETY: opened above, used no more.
    unsafe { close(board) };
    if argc > 2 {
        // SAFETY: as above for argv.
        let bytes = unsafe { atoll(*argv.add(2)) };
        return print(bytes.max(0).cast_unsigned());
    }
    loop {
        // SAFETY: no preconditions.
        unsafe { pause() };
    }
}

fn print(bytes: u64) -> c_int {
    let mut left = bytes;
    let mut at = 0;
    while left > 0 {
        let length = (TEXT.len() - at).min(usize::try_from(left).unwrap_or(usize::MAX));
        // SAFETY: `at + length` is within TEXT.
        let written = unsafe { write(1, TEXT.as_ptr().add(at).cast(), length) };
        let Ok(written @ 1..) = usize::try_from(written) else { return 3 };
        left -= written as u64;
        at = (at + written) % TEXT.len();
    }
    0
}
