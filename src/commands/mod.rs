//! The commands, one file each: each reads its arguments, calls the crates and prints the result.
//! You can change a command here alone. The code it calls is in `run_folder`, `registry`, `proofs` and `framework`.

pub mod adapt;
pub mod check;
pub mod compare;
pub mod convert_parts;
pub mod cost;
mod data_sheet;
pub mod devices;
pub mod doctor;
pub mod encode;
pub mod evaluate;
pub mod init;
pub mod inspect;
pub mod man;
pub mod network_file;
pub mod pairs;
pub mod plane;
pub mod reference;
pub mod sample;
pub mod serve;
pub mod train;
pub mod verify;
