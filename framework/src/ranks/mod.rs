//! Ranks: the processes that train one run together, their messages, and the division of the work among them.
//! A new transport is one more implementation of [`collective::Collective`]; nothing else in this folder knows how
//! messages travel.
//!
//! The document states the global batch, `batch_size * accumulate`. A rank computes some of the passes of each step.
//! Gradients are added in a binary tree over the pass indices, so 1, 2, 4, .. ranks compute the same bits.

pub mod collective;
pub mod job;
pub mod messages;
pub mod shards;
pub mod tree;
pub mod watchdog;
