//! The linked way: the command with this crate's plugin in it. `cargo run --release -- verify gft_zero`

use third_party_objective as _;

fn main() -> std::process::ExitCode {
    unguided::main()
}
