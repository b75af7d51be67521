//! Progress of transfers: bars where standard error is a terminal, a few lines where it is not.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use proa_image::layer::LeftOut;
use proa_image::{Event, Progress};
use proa_oci::reference::Digest;

const BAR: &str = "{prefix:.dim} {msg:<11} [{bar:30}] {bytes:>10}/{total_bytes:<10} {bytes_per_sec}";
const PLAIN: &str = "{prefix:.dim} {msg}";

/// Draws what a pull or push tells.
pub struct Bars {
    screen: Option<MultiProgress>,
    bars: Mutex<BTreeMap<String, ProgressBar>>,
}

impl Bars {
    /// Bars on a terminal; nothing where `quiet` or where standard error is a file.
    pub fn new(quiet: bool) -> Self {
        let screen = (!quiet && std::io::stderr().is_terminal()).then(MultiProgress::new);
        Self { screen, bars: Mutex::default() }
    }

    fn with(&self, digest: &Digest, change: impl FnOnce(&ProgressBar)) {
        let Some(screen) = &self.screen else { return };
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        let short = digest.hex().get(..12).unwrap_or_default().to_owned();
        change(
            bars.entry(short.clone())
                .or_insert_with(|| screen.add(ProgressBar::no_length().with_prefix(short))),
        );
    }

    fn disk(&self, work: &'static str, done: u64, total: u64) {
        let Some(screen) = &self.screen else { return };
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = bars.entry(work.to_owned()).or_insert_with(|| {
            screen.add(ProgressBar::no_length().with_prefix("disk").with_message(work).with_style(style(BAR)))
        });
        bar.set_length(total);
        bar.set_position(done);
    }

    /// A line that takes the place of the bar.
    fn say(&self, digest: &Digest, message: &'static str, last: bool) {
        self.with(digest, |bar| {
            bar.set_style(style(PLAIN));
            if last { bar.finish_with_message(message) } else { bar.set_message(message) }
        });
    }
}

impl Progress for Bars {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::LayerStarted { digest, size } => self.with(digest, |bar| {
                bar.set_style(style(BAR));
                bar.set_length(size);
                bar.set_message("transfer");
            }),
            Event::LayerBytes { digest, transferred } => {
                self.with(digest, |bar| bar.set_position(transferred))
            }
            Event::LayerExists { digest } => self.say(digest, "is here already", true),
            Event::LayerWaiting { digest } => self.say(digest, "another command fetches it", false),
            Event::LayerConverting { digest } => self.say(digest, "being finished", false),
            Event::LayerDone { digest } => self.say(digest, "complete", true),
            Event::LayerIncomplete { digest, left_out } => {
                let LeftOut { devices, attributes } = left_out;
                let short = digest.hex().get(..12).unwrap_or_default();
                crate::context::notice(&format!(
                    "layer {short}: left out what only root can make: {devices} device nodes, {attributes} \
                     attributes trusted.*"
                ));
            }
            Event::DiskBytes { work, done, total } => self.disk(work, done, total),
            Event::Retry { what, reason } => {
                if let Some(screen) = &self.screen {
                    // A terminal that is gone needs no line.
                    let _ = screen.println(format!("trying {what} again: {reason}"));
                }
            }
            _ => {}
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}
