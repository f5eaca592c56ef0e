//! The program.

fn main() -> std::process::ExitCode {
    tributary::run_command_line()
}
