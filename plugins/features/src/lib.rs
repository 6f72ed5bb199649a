//! Feature spaces, in which metrics compare images, one file each. To add a space, add its file and list it below.

#[cfg(test)]
use framework_dylib as _;

mod digits;
mod inception_v3;
mod pixels;
mod resize;

pub use digits::Digits;
pub use inception_v3::InceptionV3;
pub use pixels::Pixels;
pub use resize::Resizing;
