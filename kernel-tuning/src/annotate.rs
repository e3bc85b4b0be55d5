//! Files that say of every value why it is there.
//!
//! Pure.

use crate::profile;

/// Names and values in the form of sysctl.d(5), each with what the profile says of it.
pub(crate) fn sysctl_d<'a>(values: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let entries = values.map(|(name, value)| match profile::setting(name) {
        None => format!("{name} = {value}\n"),
        Some(setting) => {
            let about = format!(
                "{} (in {}; {})",
                setting.reason, setting.unit, setting.source
            );
            let optional = if setting.is_optional { "-" } else { "" };
            format!("{}{optional}{name} = {value}\n", comment(&about))
        }
    });
    entries.collect::<Vec<_>>().join("\n")
}

/// `text` as lines of a comment.
pub(crate) fn comment(text: &str) -> String {
    let lines = lines(text, 100).into_iter();
    lines.map(|line| format!("# {line}\n")).collect()
}

/// The words of `text` in lines of at most `width` characters, as far as single words allow.
pub(crate) fn lines(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_kept_whole_and_in_order() {
        assert_eq!(lines("", 5), Vec::<String>::new());
        assert_eq!(
            lines("a bc  def\nverylong g", 4),
            ["a bc", "def", "verylong", "g"]
        );
        assert_eq!(comment("a b"), "# a b\n");
    }
}
