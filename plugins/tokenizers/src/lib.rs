//! tokenizers_builtin
