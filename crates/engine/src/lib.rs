//! Use cases and records: run, create, exec, stop, rm and their state.
