//! Workers on a machine whose clock is wrong.

use std::path::Path;
use std::process::Command;

use anyhow::Context;

/// Replaces the C library's function from which every program here gets the time of day.
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

/// Builds the library and returns the environment of a program whose clock is `shift_s` seconds ahead; negative:
/// behind.
pub fn shifted_clock(folder: &Path, shift_s: i64) -> anyhow::Result<Vec<(String, String)>> {
    let (source, library) = (folder.join("clock.c"), folder.join(format!("clock{shift_s}.so")));
    std::fs::write(&source, SOURCE)?;
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(format!("-DSHIFT_S=({shift_s})")).arg(&source);
    let ended = compiler.status().context("cannot run cc: install a C compiler, which the build needs, too")?;
    anyhow::ensure!(ended.success(), "{compiler:?} failed");
    Ok(vec![("LD_PRELOAD".into(), library.display().to_string())])
}
