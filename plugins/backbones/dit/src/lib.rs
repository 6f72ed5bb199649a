//! dit
