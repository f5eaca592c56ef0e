//! Workers on a machine whose clock is wrong.

use std::path::Path;
use std::process::Command;

use anyhow::Context;

/// Takes the place of the C library's function, through which every program here asks for the time of day.
const SOURCE: &str = "
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    if (!failed && clock == CLOCK_REALTIME) now->tv_sec += SHIFT_S;
    return failed;
}
";

/// The environment of programs whose clock is so many seconds ahead; negative: behind.
pub fn shifted_clock(folder: &Path, shift_s: i64) -> anyhow::Result<Vec<(String, String)>> {
    let (source, library) = (folder.join("clock.c"), folder.join(format!("clock{shift_s}.so")));
    std::fs::write(&source, SOURCE)?;
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(format!("-DSHIFT_S=({shift_s})")).arg(&source);
    let ended = compiler.status().context("a C compiler is needed, as for building")?;
    anyhow::ensure!(ended.success(), "{compiler:?} failed");
    Ok(vec![("LD_PRELOAD".into(), library.display().to_string())])
}
