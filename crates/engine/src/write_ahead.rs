//! Making a database write ahead, which SQLite does not wait for.

use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};
use rustix::event::Timespec;

/// Makes changes go through a log beside the database, which is a property of the file. SQLite does not wait for
/// readers here, whatever its time limit for other locks, so this does.
///
/// # Errors
/// It cannot be done, or others kept it from being done for `limit`.
pub(crate) fn write_ahead(db: &Connection, limit: Duration) -> rusqlite::Result<()> {
    let deadline = Instant::now() + limit;
    let is_busy = |error: &rusqlite::Error| error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy);
    loop {
        match db.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())) {
            Err(error) if is_busy(&error) && Instant::now() < deadline => pause(),
            other => return other,
        }
    }
}

fn pause() {
    let moment = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    // Nothing is waited for but time.
    let _ = rustix::event::poll(&mut [], Some(&moment));
}
