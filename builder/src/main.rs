//! The `rbuild` binary.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    // A re-exec'd sandbox child must not get any further.
    rbuild_sandbox::dispatch();
    rbuild_sandbox::keep_memory_small();
    rbuild::commands::main()
}
