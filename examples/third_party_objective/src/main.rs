//! The `unguided` command with this crate's plugin linked in. Run it with `cargo run --release -- verify gft_zero`.

use third_party_objective as _;

fn main() -> std::process::ExitCode {
    unguided::main()
}
