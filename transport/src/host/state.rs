//! The life of an import.
//!
//! ```text
//!                        Dial                  Resumed
//!  ► Disconnected ───────────────► Connecting ───────────────────► Full
//!      ▲   ▲   ▲       Failed       │      │ Restarted              │
//!      │   │   └────────────────────┘      ▼          Replayed      │
//!      │   └────────────────────────── Replaying ─────────────────► │
//!      │               LinkLost, Failed                             │
//!      └────────────────────────────────────────────────────────────┘
//!                                LinkLost
//!  any ── Close ──► Closed
//! ```

/// Where an import is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportState {
    /// No link; the next attempt comes after a pause.
    Disconnected,
    /// Opening a link and introducing ourselves.
    Connecting,
    /// The server has restarted: it is being told what this client holds.
    Replaying,
    /// Requests pass.
    Full,
    /// For good.
    Closed,
}

/// What happens to an import.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportInput {
    /// An attempt begins.
    Dial,
    /// The attempt came to nothing.
    Failed,
    /// The server knows us and what we hold, or we hold nothing there.
    Resumed,
    /// The server waits to be told what we hold.
    Restarted,
    /// It has been told.
    Replayed,
    /// The link ended.
    LinkLost,
    /// Nobody needs it any more.
    Close,
}

/// A move that the drawing does not have: a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} in state {state:?}")]
pub struct Unexpected {
    /// Where it was.
    pub state: ImportState,
    /// What came.
    pub input: ImportInput,
}

impl ImportState {
    /// The next state.
    pub fn apply(self, input: ImportInput) -> Result<ImportState, Unexpected> {
        use ImportInput::*;
        use ImportState::*;
        Ok(match (self, input) {
            (_, Close) => Closed,
            (Disconnected, Dial) => Connecting,
            (Connecting, Failed) => Disconnected,
            (Connecting, Resumed) => Full,
            (Connecting, Restarted) => Replaying,
            (Replaying, Replayed) => Full,
            (Replaying, Failed | LinkLost) => Disconnected,
            (Full, LinkLost) => Disconnected,
            (state, input) => return Err(Unexpected { state, input }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_moves() {
        use ImportInput::*;
        use ImportState::*;
        let mut moves = Vec::new();
        for state in [Disconnected, Connecting, Replaying, Full, Closed] {
            for input in [Dial, Failed, Resumed, Restarted, Replayed, LinkLost, Close] {
                if let Ok(next) = state.apply(input) {
                    moves.push(format!("{state:?} {input:?} {next:?}"));
                }
            }
        }
        assert_eq!(
            moves,
            [
                "Disconnected Dial Connecting",
                "Disconnected Close Closed",
                "Connecting Failed Disconnected",
                "Connecting Resumed Full",
                "Connecting Restarted Replaying",
                "Connecting Close Closed",
                "Replaying Failed Disconnected",
                "Replaying Replayed Full",
                "Replaying LinkLost Disconnected",
                "Replaying Close Closed",
                "Full LinkLost Disconnected",
                "Full Close Closed",
                "Closed Close Closed",
            ]
        );
    }
}
