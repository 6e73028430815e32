//! The `rbuild` binary.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    // A re-exec'd sandbox child must not get any further.
    rbuild_sandbox::dispatch();
    rbuild_sandbox::share_two_heaps();
    rbuild::commands::main()
}
