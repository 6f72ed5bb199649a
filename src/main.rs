//! The `unguided` command. All its code is in the library, so a binary with other plugins needs only five lines.

fn main() -> std::process::ExitCode {
    unguided::main()
}
