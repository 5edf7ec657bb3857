//! PURE. A shell's text as the words of its commands, as far as it needs no shell to know them.

/// One command: its words, quotes taken away.
pub(super) type Words = Vec<String>;

/// Why a text cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("line {0}: the quote {1} is not closed")]
    Quote(usize, char),
    #[error(
        "line {0}: `{1}` is filled in by the shell; write its value, or let the shell do it: autossm import -- aws ssm …"
    )]
    Expansion(usize, String),
}

/// The commands of a text, one after the other: quotes, backslashes and continued lines are understood, comments and
/// redirections left out.
pub(super) fn commands(text: &str) -> Result<Vec<Words>, Unreadable> {
    let mut reader = Reader {
        text: text.chars().peekable(),
        line: 1,
        commands: vec![Words::new()],
        word: None,
        skip: false,
    };
    while let Some(c) = reader.next() {
        reader.take(c)?;
    }
    reader.end_word();
    reader.commands.retain(|words| !words.is_empty());
    Ok(reader.commands)
}

struct Reader<'a> {
    text: std::iter::Peekable<std::str::Chars<'a>>,
    line: usize,
    /// The last one is not complete.
    commands: Vec<Words>,
    word: Option<String>,
    /// The next word is where something is redirected to.
    skip: bool,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<char> {
        let next = self.text.next();
        self.line += usize::from(next == Some('\n'));
        next
    }

    fn take(&mut self, c: char) -> Result<(), Unreadable> {
        match c {
            '\\' => match self.next() {
                Some('\n') | None => (),
                // A file that was made on Windows.
                Some('\r') if self.text.peek() == Some(&'\n') => drop(self.next()),
                Some(c) => self.push(c),
            },
            '\'' => self.single()?,
            '"' => self.double()?,
            '$' | '`' => self.dollar(c)?,
            '#' if self.word.is_none() => {
                while self.text.peek().is_some_and(|c| *c != '\n') {
                    self.next();
                }
            }
            '\n' | ';' | '|' | '&' | '(' | ')' => {
                // `2>&1` and `&>file` belong to the command.
                if c == '&' && (self.skip || self.text.peek() == Some(&'>')) {
                    return Ok(());
                }
                self.end_word();
                self.commands.push(Words::new());
            }
            '>' | '<' => {
                // What stands directly before it is a descriptor's number.
                if self.word.as_ref().is_some_and(|word| word.chars().all(|c| c.is_ascii_digit())) {
                    self.word = None;
                }
                self.end_word();
                self.skip = true;
            }
            c if c.is_whitespace() => self.end_word(),
            c => self.push(c),
        }
        Ok(())
    }

    fn push(&mut self, c: char) {
        self.word.get_or_insert_default().push(c);
    }

    fn end_word(&mut self) {
        if let Some(word) = self.word.take()
            && !std::mem::take(&mut self.skip)
            && let Some(words) = self.commands.last_mut()
        {
            words.push(word);
        }
    }

    fn single(&mut self) -> Result<(), Unreadable> {
        let began = self.line;
        self.word.get_or_insert_default();
        loop {
            match self.next() {
                Some('\'') => return Ok(()),
                Some(c) => self.push(c),
                None => return Err(Unreadable::Quote(began, '\'')),
            }
        }
    }

    fn double(&mut self) -> Result<(), Unreadable> {
        let began = self.line;
        self.word.get_or_insert_default();
        loop {
            match self.next() {
                Some('"') => return Ok(()),
                Some('\\') => match self.next() {
                    Some('\n') => (),
                    Some(c @ ('"' | '\\' | '$' | '`')) => self.push(c),
                    Some(c) => {
                        self.push('\\');
                        self.push(c);
                    }
                    None => return Err(Unreadable::Quote(began, '"')),
                },
                Some(c @ ('$' | '`')) => self.dollar(c)?,
                Some(c) => self.push(c),
                None => return Err(Unreadable::Quote(began, '"')),
            }
        }
    }

    /// A lone dollar sign is one; anything else is for a shell to say.
    fn dollar(&mut self, c: char) -> Result<(), Unreadable> {
        let next = self.text.peek().copied();
        let begins = |c: char| c.is_alphanumeric() || "_{(@*#?!'\"".contains(c);
        if c == '$' && !next.is_some_and(begins) {
            self.push(c);
            return Ok(());
        }
        let name = self.text.clone().take_while(|c| c.is_alphanumeric() || "_{}".contains(*c)).take(40);
        Err(Unreadable::Expansion(self.line, std::iter::once(c).chain(name).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(text: &str) -> Words {
        let mut commands = commands(text).unwrap();
        assert_eq!(commands.len(), 1, "{commands:?}");
        commands.remove(0)
    }

    #[test]
    fn quotes_backslashes_and_continued_lines() {
        assert_eq!(words(r#"a 'b c' "d \"e\" \n" f\ g """#), ["a", "b c", "d \"e\" \\n", "f g", ""]);
        assert_eq!(
            words("aws ssm \\\n  start-session \\\r\n --target i-1  # why"),
            ["aws", "ssm", "start-session", "--target", "i-1"]
        );
        assert_eq!(
            words(r#"--parameters host="db",portNumber='5432'"#),
            ["--parameters", "host=db,portNumber=5432"]
        );
        assert_eq!(words("cost 5$ a$"), ["cost", "5$", "a$"]);
    }

    #[test]
    fn commands_are_parted_and_redirections_left_out() {
        let text = "#!/bin/sh\nexport AWS_PROFILE=x; aws ssm >/dev/null 2>&1 &\nnohup aws 2> log < in && echo done | cat\n(sleep 1)";
        let expected: [&[&str]; 6] = [
            &["export", "AWS_PROFILE=x"],
            &["aws", "ssm"],
            &["nohup", "aws"],
            &["echo", "done"],
            &["cat"],
            &["sleep", "1"],
        ];
        assert_eq!(commands(text).unwrap(), expected);
        assert_eq!(words("aws ssm &> log"), ["aws", "ssm"]);
    }

    #[test]
    fn what_only_a_shell_knows_is_named() {
        for (text, shown) in [
            ("aws \\\n --target $TARGET", "line 2: `$TARGET` is filled in by the shell"),
            ("aws \"${ID}\"", "line 1: `${ID}` is filled in by the shell"),
            ("aws $(id)", "line 1: `$` is filled in"),
            ("aws `id`", "line 1: ``id` is filled in"),
            ("aws '--target", "line 1: the quote ' is not closed"),
            ("aws\n\"x\\", "line 2: the quote \" is not closed"),
        ] {
            let error = commands(text).unwrap_err().to_string();
            assert!(error.starts_with(shown), "{text}: {error}");
        }
    }

    proptest! {
        /// What is quoted comes out as it was.
        #[test]
        fn quoted_words_are_themselves(given in proptest::collection::vec("[^']{0,20}", 1..6)) {
            let text: Vec<String> = given.iter().map(|word| format!("'{word}'")).collect();
            prop_assert_eq!(words(&text.join(" ")), given);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[a-z $`'\"\\\\<>&|;#()\n\\PC]{0,60}") {
            let _ = commands(&text);
        }
    }
}
