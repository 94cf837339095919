//! A step's command line as a process: by the image's shell; in an image without one, a program and plain arguments.

use std::io;
use std::path::Path;
use std::process::Command;

const SHELL: &str = "/bin/sh";
/// What only a shell can make something of.
const SPECIAL: &str = "$`|&;<>()*?[]{}~#!\n";

/// # Errors
/// When there is no shell, and the line wants one.
pub fn of(line: &str) -> io::Result<Command> {
    if Path::new(SHELL).exists() {
        let mut shell = Command::new(SHELL);
        shell.args(["-c", line]);
        return Ok(shell);
    }
    let words = words(line).ok_or_else(|| {
        let why = format!("the image has no {SHELL}; only a program with plain arguments can be run in it");
        io::Error::new(io::ErrorKind::Unsupported, why)
    })?;
    let (program, arguments) = words
        .split_first()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it has no words"))?;
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(command)
}

/// The words of a line, as a shell would read them: quotes and backslashes, and nothing else. `None` when it has more.
fn words(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            ' ' | '\t' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match characters.next()? {
                        '\'' => break,
                        character => word.push(character),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match characters.next()? {
                        '"' => break,
                        '$' | '`' => return None,
                        '\\' => match characters.next()? {
                            escaped @ ('"' | '\\' | '$' | '`') => word.push(escaped),
                            other => word.extend(['\\', other]),
                        },
                        character => word.push(character),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(characters.next()?),
            character if SPECIAL.contains(character) => return None,
            // A variable for the program.
            '=' if words.is_empty() => return None,
            character => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn plain_lines_are_words_and_others_are_not() {
        for (line, expected) in [
            (
                "/app  --name 'a b' \"c\\\"d\\e\" f\\ g ''",
                Some(vec!["/app", "--name", "a b", "c\"d\\e", "f g", ""]),
            ),
            (" 한 x=y", Some(vec!["한", "x=y"])),
            ("", Some(vec![])),
            ("a | b", None),
            ("a && b", None),
            ("echo $HOME", None),
            ("echo \"$HOME\"", None),
            ("A=b program", None),
            ("a 'b", None),
            ("a \"b", None),
            ("a \\", None),
            ("ls *", None),
        ] {
            let found = words(line);
            let found = found
                .as_ref()
                .map(|words| words.iter().map(String::as_str).collect::<Vec<_>>());
            assert_eq!(found, expected, "{line}");
        }
    }
}
