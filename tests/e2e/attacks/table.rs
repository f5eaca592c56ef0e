//! What foes do, what is expected of it, and what came of it: one row an action.

use std::collections::BTreeMap;
use std::fmt;

use super::raw_client::RawPublication;

/// What came of an action.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ActionOutcome {
    /// An image like any other: it has one answer, of the site or of the cloud.
    Answered,
    /// The same image again: it has the answer that it has.
    AnsweredBefore,
    /// A dead letter of this fault.
    DeadLetter(String),
    /// A verdict, for the site that asked and for nobody else.
    Verdict,
    /// Stored under the name of who sent it; nobody else is concerned.
    KeptAsItsOwn,
    /// Its own things are shown to it.
    SaysWhatIsItsOwn,
    /// The server says no, or says nothing, and nothing came of it.
    Refused,
    /// The server ends the connection.
    Disconnected,
    /// Stored, and nothing is known of it any more.
    Lost,
}

impl ActionOutcome {
    /// A dead letter of this fault.
    pub(super) fn dead(fault: &str) -> Self {
        Self::DeadLetter(fault.into())
    }

    /// Whether an outcome is this one. A fault that ends with `*` is any that begins so.
    fn allows(&self, outcome: &Self) -> bool {
        match (self, outcome) {
            (Self::DeadLetter(wanted), Self::DeadLetter(fault)) => match wanted.strip_suffix('*') {
                Some(beginning) => fault.starts_with(beginning),
                None => fault == wanted,
            },
            _ => self == outcome,
        }
    }
}

impl fmt::Display for ActionOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered => write!(f, "answered as an image"),
            Self::AnsweredBefore => write!(f, "taken for the same image again: one answer"),
            Self::DeadLetter(fault) => write!(f, "dead letter `{fault}`"),
            Self::Verdict => write!(f, "a verdict for itself"),
            Self::KeptAsItsOwn => write!(f, "kept under its own name, passed over"),
            Self::SaysWhatIsItsOwn => write!(f, "answered about what is its own"),
            Self::Refused => write!(f, "refused by the server"),
            Self::Disconnected => write!(f, "disconnected by the server"),
            Self::Lost => write!(f, "LOST"),
        }
    }
}

/// One action.
#[derive(Debug, Clone)]
pub(super) struct Action {
    /// What is tried, in words.
    pub name: String,
    /// What is published; all of it with the same outcome.
    pub shots: Vec<RawPublication>,
    /// What shall come of it; any of these where chance decides which.
    pub expected: Vec<ActionOutcome>,
    /// What came of it, and how often.
    pub actual: BTreeMap<ActionOutcome, usize>,
}

impl Action {
    /// One message.
    pub(super) fn new(name: impl Into<String>, shot: RawPublication, expected: ActionOutcome) -> Self {
        Self::many(name, vec![shot], expected)
    }

    /// Many messages.
    pub(super) fn many(name: impl Into<String>, shots: Vec<RawPublication>, expected: ActionOutcome) -> Self {
        Self { name: name.into(), shots, expected: vec![expected], actual: BTreeMap::new() }
    }

    /// Whether what came of it is what was expected.
    pub(super) fn holds(&self) -> bool {
        let sum: usize = self.actual.values().sum();
        let fits = |outcome: &ActionOutcome| self.expected.iter().any(|expected| expected.allows(outcome));
        sum == self.shots.len() && self.actual.keys().all(fits)
    }

    /// How it is done: the first message of it.
    pub(super) fn how(&self) -> String {
        let Some(shot) = self.shots.first() else { return String::new() };
        let mut how = match self.shots.len() {
            1 => String::new(),
            many => format!("{many} messages; the first: "),
        };
        how += &format!("`{}`", shown(shot.subject.as_bytes()));
        if !shot.headers.is_empty() {
            let body = shot.headers.strip_prefix(b"NATS/1.0\r\n").unwrap_or(&shot.headers);
            let body = body.strip_suffix(b"\r\n\r\n").unwrap_or(body);
            how += &format!(", headers of {} bytes `{}`", shot.headers.len(), shown(body));
        }
        how += &match shot.payload.len() {
            0 => ", no payload".to_owned(),
            1..=24 if shot.payload.is_ascii() => format!(", payload `{}`", shown(&shot.payload)),
            bytes => format!(", {bytes} bytes"),
        };
        if let Some(reply) = &shot.reply {
            how += &format!(", answer to `{}`", shown(reply.as_bytes()));
        }
        how
    }

    /// What came of it, in words.
    pub(super) fn said(&self) -> String {
        let one = self.actual.len() == 1;
        let words = |(outcome, count): (&ActionOutcome, &usize)| match one {
            true => outcome.to_string(),
            false => format!("{count} × {outcome}"),
        };
        self.actual.iter().map(words).collect::<Vec<_>>().join("; ")
    }
}

/// Bytes as a page can show them, cut.
fn shown(bytes: &[u8]) -> String {
    const MOST: usize = 70;
    let text: String =
        bytes.iter().take(MOST).flat_map(|byte| std::ascii::escape_default(*byte)).map(char::from).collect();
    let text = text.replace('|', "\\x7c").replace('`', "\\x60");
    if bytes.len() > MOST { text + "…" } else { text }
}

/// The table of all actions, as Markdown.
pub(super) fn markdown(sections: &[(&str, &[Action])], summary: &str) -> String {
    let mut text = format!(
        "# What a hostile camera and a hostile site can do\n\nMade by `tests/e2e/attacks.rs` (with `TRIBUTARY_FOES_TABLE=1`), which does all of it \
         while an honest site works, and fails where a row is not so.\n\n{summary}\n"
    );
    for (title, actions) in sections {
        text += &format!("\n## {title}\n\n| # | action | how | outcome |\n|---|---|---|---|\n");
        for (number, action) in actions.iter().enumerate() {
            text += &format!("| {} | {} | {} | {} |\n", number + 1, action.name, action.how(), action.said());
        }
    }
    text
}

/// The beginning of a subject: enough to tell what it is.
pub(super) fn first_tokens(subject: &str) -> String {
    let tokens: Vec<&str> = subject.split('.').collect();
    let some = if tokens[0] == "$JS" { 6 } else { 3 };
    let shown: Vec<String> = tokens.iter().take(some).map(|token| token.chars().take(40).collect()).collect();
    format!("`{}`", shown.join("."))
}
