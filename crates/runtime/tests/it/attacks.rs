//! .
crate::tests![];
