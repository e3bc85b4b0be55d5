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
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        if lines[last].is_empty() {
            lines[last].push_str(word);
        } else if lines[last].chars().count() + 1 + word.chars().count() <= width {
            lines[last] += &format!(" {word}");
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}
