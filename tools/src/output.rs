//! What a command says: results on standard output, as text or JSON; errors and the log on standard error.

use std::fmt::Display;
use std::io::IsTerminal;

use serde::Serialize;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Where results go.
pub struct Output {
    /// `--json`.
    pub json: bool,
}

impl Output {
    /// Prints a result: its own text, or JSON.
    pub fn result<T: Serialize + Display>(&self, result: &T) {
        if self.json {
            self.json(result);
        } else {
            println!("{result}");
        }
    }

    /// Prints JSON whatever `--json` says.
    pub fn json<T: Serialize>(&self, result: &T) {
        println!("{}", serde_json::to_string_pretty(result).expect("results are plain data"));
    }

    /// Prints an error.
    pub fn error(&self, error: &Error) {
        if self.json {
            let text = serde_json::json!({ "error": error.0 });
            eprintln!("{text}");
        } else {
            eprintln!("nacre: {}", error.0);
        }
    }
}

/// Why a command failed, in words: what happened, to what, what to do.
#[derive(Debug)]
pub struct Error(String);

impl Error {
    /// From words.
    pub fn new(words: impl Into<String>) -> Error {
        Error(words.into())
    }

    /// The words.
    pub fn words(&self) -> &str {
        &self.0
    }
}

/// Any error with words becomes a command's error, the causes that the words leave out included.
impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Error {
        let mut words = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            let text = inner.to_string();
            if !words.contains(&text) {
                words = format!("{words}: {text}");
            }
            cause = inner.source();
        }
        Error(words)
    }
}

/// Adds to a failure what was being done, and to what.
pub trait Context<T> {
    /// `words: cause`.
    fn context(self, words: impl Display) -> Result<T, Error>;
}

impl<T, E: Into<Error>> Context<T> for Result<T, E> {
    fn context(self, words: impl Display) -> Result<T, Error> {
        self.map_err(|error| Error(format!("{words}: {}", error.into().0)))
    }
}

/// Result of a command.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Starts the log on standard error. `NACRE_LOG` chooses what (`debug`, `nacre_client=trace,info`).
pub fn start_log(by_default: bool) {
    let usual = if by_default { LevelFilter::INFO } else { LevelFilter::WARN };
    let mut filter = Targets::new().with_default(usual);
    if let Ok(text) = std::env::var("NACRE_LOG") {
        match text.parse() {
            Ok(targets) => filter = targets,
            Err(error) => eprintln!("nacre: NACRE_LOG=\"{text}\" is ignored: {error}"),
        }
    }
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false).compact();
    // Colours are for people, not for log files.
    let lines = lines.with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry().with(filter).with(lines).init();
}

/// A progress bar for bytes, on a terminal, for what takes over a second.
pub fn progress(what: &'static str) -> indicatif::ProgressBar {
    let style = indicatif::ProgressStyle::with_template("{msg}: {bytes} {elapsed}").expect("a constant template");
    let bar = indicatif::ProgressBar::new_spinner().with_style(style).with_message(what);
    bar.set_draw_target(indicatif::ProgressDrawTarget::stderr_with_hz(4));
    bar
}
