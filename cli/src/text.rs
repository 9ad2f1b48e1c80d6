//! Text that others had a part in, made fit for one line of a terminal, a log or an answer.

/// The text with what would move the cursor or begin a line escaped, cut after `chars_max` characters.
pub(crate) fn one_line(text: &str, chars_max: usize) -> String {
    let mut line: String = text.chars().take(chars_max).flat_map(printable).collect();
    if text.chars().nth(chars_max).is_some() {
        line.push_str("...");
    }
    line
}

fn printable(character: char) -> impl Iterator<Item = char> {
    let escaped = character.is_control().then(|| character.escape_default());
    let plain = escaped.is_none().then_some(character);
    escaped.into_iter().flatten().chain(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_the_cursor_is_escaped_and_what_is_long_is_cut() {
        assert_eq!(one_line("a\nb\x1b[31m\u{9b}ä", 100), r"a\nb\u{1b}[31m\u{9b}ä");
        assert_eq!(one_line("abc", 3), "abc");
        assert_eq!(one_line("abcd", 3), "abc...");
    }
}
