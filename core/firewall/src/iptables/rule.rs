//! One rule as a row of words, and when iptables would read the row differently than it was meant.

use std::fmt;

use ipnet::IpNet;
use thiserror::Error;

/// The longest line that `iptables-restore` reads whole, in bytes, with room for the command before the rule.
const MAX_LINE: usize = 10_000;
/// The longest word, in bytes: older versions of `iptables-restore` stop at 1023.
const MAX_WORD: usize = 1023;
/// The longest name of a chain, in bytes.
const MAX_CHAIN: usize = 28;

/// Why a change cannot be given to iptables.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Invalid {
    /// A chain's name that iptables refuses or would take for something else.
    #[error(
        "{0:?} cannot be a chain's name (1 to {MAX_CHAIN} visible characters that do not begin with '-' or '!')"
    )]
    Chain(String),
    /// A rule's word that would end the line or be cut.
    #[error("{0:?} cannot be a word of a rule (1 to {MAX_WORD} bytes without line breaks)")]
    Word(String),
    /// The words together do not fit.
    #[error("the rule is {0} bytes long, iptables-restore reads {MAX_LINE}")]
    Length(usize),
}

/// A rule: what `iptables-save` prints behind `-A <chain>`, word by word.
///
/// The order is `-s`, `-d`, `-i`, `-o`, `-p`, the extensions, the target; a network is written with its prefix length (`10.1.0.5/32`).
/// A rule in another spelling works as well, but is not recognised when it is read back.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    words: Vec<String>,
}

impl Rule {
    /// A rule of these words, none of them quoted.
    pub fn new<T: Into<String>>(words: impl IntoIterator<Item = T>) -> Self {
        Self { words: words.into_iter().map(Into::into).collect() }
    }

    /// The words.
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// What follows the first of these options. `None` also when it is negated.
    pub fn value_of(&self, options: &[&str]) -> Option<&str> {
        let at = self.words.iter().position(|word| options.contains(&word.as_str()))?;
        let is_negated =
            at.checked_sub(1).and_then(|before| self.words.get(before)).is_some_and(|w| w == "!");
        if is_negated { None } else { self.words.get(at + 1).map(String::as_str) }
    }

    /// `--comment`.
    pub fn comment(&self) -> Option<&str> {
        self.value_of(&["--comment"])
    }

    /// `-j` or `-g`: a chain or a target.
    pub fn target(&self) -> Option<&str> {
        self.value_of(&["-j", "-g"])
    }

    /// `-s`, where it is not negated.
    pub fn source(&self) -> Option<IpNet> {
        net(self.value_of(&["-s"])?)
    }

    /// `-d`, where it is not negated.
    pub fn destination(&self) -> Option<IpNet> {
        net(self.value_of(&["-d"])?)
    }

    /// The same rule without its comment.
    #[must_use]
    pub fn without_comment(&self) -> Self {
        let mut words = self.words.clone();
        let comment = words.windows(3).position(|three| {
            three.iter().map(String::as_str).take(2).eq(["-m", "comment"])
                && three.get(2).is_some_and(|word| word == "--comment")
        });
        if let Some(at) = comment {
            words.drain(at..(at + 4).min(words.len()));
        }
        Self { words }
    }

    /// Says what would keep iptables from reading these words as they are.
    ///
    /// # Errors
    /// The first such word.
    pub fn check(&self) -> Result<(), Invalid> {
        for word in &self.words {
            if word.is_empty() || word.len() > MAX_WORD || word.contains(['\n', '\r', '\0']) {
                return Err(Invalid::Word(word.clone()));
            }
        }
        match self.to_string().len() {
            length if length > MAX_LINE => Err(Invalid::Length(length)),
            _ => Ok(()),
        }
    }
}

fn net(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse().ok().map(|addr: std::net::IpAddr| IpNet::from(addr)))
}

pub(super) fn check_chain(name: &str) -> Result<(), Invalid> {
    let is_visible = name.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '"' | '\\'));
    if name.is_empty() || name.len() > MAX_CHAIN || name.starts_with(['-', '!']) || !is_visible {
        return Err(Invalid::Chain(name.to_owned()));
    }
    Ok(())
}

impl fmt::Display for Rule {
    /// The words as a line of `iptables-save`: quoted where they hold anything but the plainest characters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut gap = "";
        for word in &self.words {
            f.write_str(gap)?;
            gap = " ";
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.,:/!+=@%[]{}()<>*#&|^~?$;".contains(c);
            if !word.is_empty() && word.chars().all(is_plain) {
                f.write_str(word)?;
                continue;
            }
            f.write_str("\"")?;
            for character in word.chars() {
                if matches!(character, '"' | '\'' | '\\') {
                    f.write_str("\\")?;
                }
                write!(f, "{character}")?;
            }
            f.write_str("\"")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_rule_is_about_is_found() {
        let rule = Rule::new([
            "-s",
            "10.1.0.5/32",
            "!",
            "-d",
            "224.0.0.0/4",
            "-m",
            "comment",
            "--comment",
            "a b",
            "-j",
            "CNI-a",
        ]);
        assert_eq!(rule.comment(), Some("a b"));
        assert_eq!(rule.target(), Some("CNI-a"));
        assert_eq!(rule.source(), Some("10.1.0.5/32".parse().unwrap()));
        assert_eq!(rule.destination(), None);
        assert_eq!(rule.without_comment().to_string(), "-s 10.1.0.5/32 ! -d 224.0.0.0/4 -j CNI-a");
        assert_eq!(Rule::new(["-s", "fd00::5"]).source(), Some("fd00::5/128".parse().unwrap()));
        assert_eq!(
            rule.to_string(),
            r#"-s 10.1.0.5/32 ! -d 224.0.0.0/4 -m comment --comment "a b" -j CNI-a"#
        );
    }
}
