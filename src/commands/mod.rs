//! The commands, one file each: each reads its arguments, calls the crates and prints the result.
//! You can change a command here alone. The code it calls is in `run_folder`, `registry`, `proofs` and `framework`.

pub mod convert_parts;
pub mod doctor;
pub mod encode;
pub mod inspect;
pub mod network_file;
pub mod reference;
pub mod sample;
pub mod serve;
pub mod train;
pub mod verify;
