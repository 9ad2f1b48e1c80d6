//! What clap refuses, as one line.

use clap::Error;
use clap::error::{ContextKind, ErrorKind};

/// The refusal in one line; where clap knows what may have been meant, that too.
pub(crate) fn one_line(error: &Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "no command given: try `twinblock demo`, or see --help".into();
    }
    let text = error.render().to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = first.split_whitespace().collect();
    let mut line = words.join(" ");
    if let Some(rest) = line.strip_prefix("error: ") {
        line = rest.into();
    }
    for kind in [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand, ContextKind::SuggestedValue] {
        if let Some(suggestion) = error.get(kind) {
            line.push_str(&format!("; did you mean {suggestion}?"));
        }
    }
    line.push_str(" (see --help)");
    line
}
