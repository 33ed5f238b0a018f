//! The text form of label selectors, token by token.

use super::{Operator, Requirement, bad, check_key};
use crate::Error;

const OPERATORS: &str = "in, notin, =, ==, !=, gt, lt";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    /// One of `( ) , ! = == != > <`.
    Mark(&'a str),
    End,
}

impl<'a> Token<'a> {
    fn text(self) -> &'a str {
        match self {
            Self::Word(text) | Self::Mark(text) => text,
            Self::End => "",
        }
    }
}

/// Reads tokens from the front of the text, one ahead.
struct Lexer<'a> {
    rest: &'a str,
}

impl<'a> Lexer<'a> {
    fn peek(&self) -> Token<'a> {
        Self { rest: self.rest }.next()
    }

    fn next(&mut self) -> Token<'a> {
        let is_mark = |c: char| "=!(),><".contains(c);
        let is_space = |c: char| matches!(c, ' ' | '\t' | '\r' | '\n');
        let text = self.rest.trim_start_matches(is_space);
        let (token, length) = match text.chars().next() {
            None => (Token::End, 0),
            Some(c) if is_mark(c) => {
                let length = if text.starts_with("==") || text.starts_with("!=") { 2 } else { 1 };
                (Token::Mark(&text[..length]), length)
            }
            Some(_) => {
                let length = text.find(|c| is_mark(c) || is_space(c)).unwrap_or(text.len());
                (Token::Word(&text[..length]), length)
            }
        };
        self.rest = &text[length..];
        token
    }
}

fn expected(token: Token<'_>, what: &str) -> Error {
    bad(format!("found '{}', expected: {what}", token.text()))
}

pub(super) fn requirements(text: &str) -> Result<Vec<Requirement>, Error> {
    let mut lexer = Lexer { rest: text };
    let mut requirements = Vec::new();
    loop {
        match lexer.peek() {
            Token::End => return Ok(requirements),
            Token::Word(_) | Token::Mark("!") => {}
            other => return Err(expected(other, "!, identifier, or 'end of string'")),
        }
        let parsed = requirement(&mut lexer);
        requirements
            .push(parsed.map_err(|error| bad(format!("unable to parse requirement: {}", error.message())))?);
        match lexer.next() {
            Token::End => return Ok(requirements),
            Token::Mark(",") => match lexer.peek() {
                Token::Word(_) | Token::Mark("!") => {}
                other => return Err(expected(other, "identifier after ','")),
            },
            other => return Err(expected(other, "',' or 'end of string'")),
        }
    }
}

fn requirement(lexer: &mut Lexer<'_>) -> Result<Requirement, Error> {
    let mut token = lexer.next();
    let absent = token == Token::Mark("!");
    if absent {
        token = lexer.next();
    }
    let Token::Word(key) = token else { return Err(expected(token, "identifier")) };
    check_key(key)?;
    if absent {
        return Requirement::new(key, Operator::DoesNotExist, []);
    }
    if matches!(lexer.peek(), Token::End | Token::Mark(",")) {
        return Requirement::new(key, Operator::Exists, []);
    }
    let (operator, is_set) = match lexer.next() {
        Token::Word("in") => (Operator::In, true),
        Token::Word("notin") => (Operator::NotIn, true),
        Token::Mark("=" | "==") => (Operator::In, false),
        Token::Mark("!=") => (Operator::NotIn, false),
        Token::Mark(">") => (Operator::GreaterThan, false),
        Token::Mark("<") => (Operator::LessThan, false),
        other => return Err(expected(other, OPERATORS)),
    };
    let values = if is_set { set(lexer)? } else { vec![single(lexer)?] };
    Requirement::new(key, operator, values)
}

/// The value after `=`; nothing there is the empty value.
fn single(lexer: &mut Lexer<'_>) -> Result<String, Error> {
    match lexer.peek() {
        Token::End | Token::Mark(",") => Ok(String::new()),
        Token::Word(value) => {
            lexer.next();
            Ok(value.to_owned())
        }
        other => Err(expected(other, "identifier")),
    }
}

/// `(a,b)`; nothing before, between or after commas is the empty value.
fn set(lexer: &mut Lexer<'_>) -> Result<Vec<String>, Error> {
    match lexer.next() {
        Token::Mark("(") => {}
        other => return Err(bad(format!("found '{}' expected: '('", other.text()))),
    }
    let mut values = Vec::new();
    let mut value = None;
    loop {
        match lexer.next() {
            Token::Word(word) if value.is_none() => value = Some(word.to_owned()),
            Token::Mark(",") => values.push(value.take().unwrap_or_default()),
            Token::Mark(")") => {
                values.push(value.unwrap_or_default());
                return Ok(values);
            }
            other => return Err(expected(other, "',' or ')'")),
        }
    }
}
