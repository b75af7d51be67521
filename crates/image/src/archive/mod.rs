//! Images as files.
