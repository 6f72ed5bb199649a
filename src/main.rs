//! The `unguided` command. Everything it does is in the library, so that a binary with other plugins is five lines.

fn main() -> std::process::ExitCode {
    unguided::main()
}
