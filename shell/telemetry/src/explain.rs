//! Errors as people read them.

use std::error::Error;

/// An error with its causes, each said once: many errors carry their cause's text already. Of each cause only the first line is shown, since a parser
/// may append the lines around the fault, and those of a kubeconfig may hold a token.
#[must_use]
pub fn explain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        let said = said.lines().next().unwrap_or_default();
        if !text.contains(said) {
            text.push_str(": ");
            text.push_str(said);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Fault(&'static str);

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Above {
        text: &'static str,
        source: Fault,
    }

    #[test]
    fn a_cause_is_said_once_and_without_the_lines_around_a_fault() {
        let yaml = "unclosed quote\n --> 7:13\n7 | token: s3cret";
        let error = Above { text: "cannot use x: unclosed quote; give another", source: Fault(yaml) };
        assert_eq!(explain(&error), "cannot use x: unclosed quote; give another");
        let error = Above { text: "cannot use x", source: Fault(yaml) };
        assert_eq!(explain(&error), "cannot use x: unclosed quote");
    }
}
