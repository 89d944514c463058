//! An nf_tables rule set as lines that stand by themselves.

/// Every line of `nft list ruleset` behind the blocks it stands in, without counters.
pub(crate) fn flat(lines: &[String]) -> Vec<String> {
    let mut path: Vec<String> = Vec::new();
    let mut flat = Vec::new();
    for line in lines {
        let line = line.trim();
        if line.starts_with('#') {
            continue;
        }
        if line == "}" {
            path.pop();
        } else if let Some(block) = line.strip_suffix('{').filter(|_| !line.contains('"')) {
            path.push(block.trim().to_owned());
            flat.push(path.join(" / "));
        } else {
            flat.push(format!("{} / {}", path.join(" / "), without_counters(line)));
        }
    }
    flat
}

/// `counter packets 1 bytes 2` becomes `counter`, and the two spaces that some listings have one.
fn without_counters(line: &str) -> String {
    let mut words = Vec::new();
    let mut all = line.split_whitespace().peekable();
    while let Some(word) = all.next() {
        words.push(word);
        if word == "counter" && all.peek() == Some(&"packets") {
            let _ = all.by_ref().take(4).count();
        }
    }
    words.join(" ")
}

/// `:INPUT ACCEPT [12:840]` without what is in brackets.
pub(crate) fn without_bracketed_counters(line: &str) -> String {
    match line.rsplit_once(" [") {
        Some((head, tail)) if line.starts_with(':') && tail.ends_with(']') => head.to_owned(),
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_set_is_told_line_by_line() {
        let text = "table ip nat {\n\tchain A {\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n\
            \t\tip saddr 10.0.0.0/8  counter packets 7 bytes 12 masquerade comment \"a {\"\n\t}\n}\ntable ip6 x {\n}";
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        assert_eq!(
            flat(&lines),
            [
                "table ip nat",
                "table ip nat / chain A",
                "table ip nat / chain A / type nat hook postrouting priority srcnat; policy accept;",
                "table ip nat / chain A / ip saddr 10.0.0.0/8 counter masquerade comment \"a {\"",
                "table ip6 x",
            ]
        );
        assert_eq!(without_bracketed_counters(":INPUT ACCEPT [12:840]"), ":INPUT ACCEPT");
    }
}
