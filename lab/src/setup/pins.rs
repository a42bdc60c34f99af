//! The Python packages that the lab installs: the pip section of `environment.yml`, its single source.

use crate::house::House;
use crate::trouble::{Outcome, Subject, Trouble};

/// The pins, as pip takes them (`jupyterlab==4.6.6`).
pub fn read(house: &House) -> Outcome<Vec<String>> {
    let path = house.root().join("environment.yml");
    let text = std::fs::read_to_string(&path).doing(|| format!("read {}", path.display()))?;
    parse(&text).map_err(|why| Trouble::new(format!("{}: {why}", path.display())).mend("git checkout environment.yml"))
}

/// The items below `- pip:`, which must all be exact.
fn parse(text: &str) -> Result<Vec<String>, String> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let lines = || text.lines().map(|line| line.split(" #").next().unwrap_or_default().trim_end());
    let start = lines().position(|line| line.trim() == "- pip:").ok_or("there is no `- pip:` section")?;
    let section = lines().nth(start).map_or(0, indent);
    let pins: Vec<String> = lines()
        .skip(start + 1)
        .filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
        .take_while(|line| indent(line) > section)
        .filter_map(|line| line.trim().strip_prefix("- "))
        .map(|pin| pin.trim_matches(['"', '\'']).to_string())
        .collect();
    match pins
        .iter()
        .find(|pin| pin.split_once("==").is_none_or(|(name, version)| name.is_empty() || version.is_empty()))
    {
        Some(loose) => Err(format!("'{loose}' in the pip section is not an exact pin (name==version)")),
        None if pins.is_empty() => Err("the pip section is empty".into()),
        None => Ok(pins),
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn reads_the_pip_section_alone() {
        let text = "dependencies:\n  - python>=3.10\n  - pip\n  - pip:\n      # why\n      - a==1.0  # note\n\n      - \"b==2\"\n  - other=3\n";
        assert_eq!(parse(text), Ok(vec!["a==1.0".to_string(), "b==2".to_string()]));
    }

    #[test]
    fn refuses_what_is_not_exact() {
        assert!(parse("- pip:\n  - a>=1\n").is_err_and(|why| why.contains("a>=1")));
        assert!(parse("- pip:\n").is_err());
        assert!(parse("dependencies:\n").is_err());
    }
}
