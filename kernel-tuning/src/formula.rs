//! Arithmetic of the profiles: what a setting should be, computed from how many connections are wanted and what the
//! host has.
//!
//! Pure. Whole numbers that saturate: a result is never less for a larger demand because it overflowed. Grammar, with
//! the usual precedence (`pow2` is the next power of two, as the kernel sizes its hashes):
//!
//! ```text
//! sum     = product (("+" | "-") product)*
//! product = atom (("*" | "/") atom)*
//! atom    = number | variable | "(" sum ")" | ("min" | "max") "(" sum ("," sum)* ")" | "pow2" "(" sum ")"
//! ```

use std::fmt;
use std::iter::Peekable;
use std::vec::IntoIter;

use crate::setting::Demand;

/// An expression of a profile, such as `max(1048576, connections + 1024)`.
///
/// Its `Display` is the text it was parsed from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Formula {
    text: String,
    tree: Tree,
}

impl Formula {
    /// Parses an expression.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser {
            tokens: tokens(text)?.into_iter().peekable(),
        };
        let tree = parser.sum()?;
        match parser.tokens.next() {
            None => Ok(Self {
                text: text.trim().to_owned(),
                tree,
            }),
            Some(token) => Err(format!("{token} after the end of {text:?}")),
        }
    }

    /// Its value for `demand`.
    pub fn value(&self, demand: &Demand) -> u64 {
        self.tree.value(demand)
    }
}

impl fmt::Display for Formula {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Tree {
    Number(u64),
    Variable(Variable),
    Both(Operator, Box<[Tree; 2]>),
    Least(Vec<Tree>),
    Most(Vec<Tree>),
    PowerOfTwo(Box<Tree>),
}

impl Tree {
    fn value(&self, demand: &Demand) -> u64 {
        let each = |trees: &[Tree]| trees.iter().map(|tree| tree.value(demand)).collect();
        match self {
            Self::Number(number) => *number,
            Self::Variable(variable) => variable.value(demand),
            Self::Both(operator, sides) => {
                let [left, right] = sides.each_ref().map(|side| side.value(demand));
                operator.apply(left, right)
            }
            Self::Least(trees) => Vec::into_iter(each(trees)).min().unwrap_or(0),
            Self::Most(trees) => Vec::into_iter(each(trees)).max().unwrap_or(0),
            Self::PowerOfTwo(tree) => tree
                .value(demand)
                .checked_next_power_of_two()
                .unwrap_or(u64::MAX),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Plus,
    Minus,
    Times,
    Over,
}

impl Operator {
    fn apply(self, left: u64, right: u64) -> u64 {
        match self {
            Self::Plus => left.saturating_add(right),
            Self::Minus => left.saturating_sub(right),
            Self::Times => left.saturating_mul(right),
            // By zero: without bound.
            Self::Over => left.checked_div(right).unwrap_or(u64::MAX),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variable {
    Connections,
    Sockets,
    RamBytes,
    RamPages,
}

impl Variable {
    fn named(name: &str) -> Result<Self, String> {
        match name {
            "connections" => Ok(Self::Connections),
            "sockets" => Ok(Self::Sockets),
            "ram_bytes" => Ok(Self::RamBytes),
            "ram_pages" => Ok(Self::RamPages),
            _ => Err(format!("no variable is named {name:?}")),
        }
    }

    fn value(self, demand: &Demand) -> u64 {
        match self {
            Self::Connections => demand.connections,
            Self::Sockets => demand.sockets(),
            Self::RamBytes => demand.ram_bytes,
            Self::RamPages => demand.ram_pages(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Number(u64),
    Name(String),
    Sign(char),
}

impl fmt::Display for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(out, "{number}"),
            Self::Name(name) => write!(out, "{name:?}"),
            Self::Sign(sign) => write!(out, "{sign:?}"),
        }
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end.max(first.len_utf8()));
        tokens.push(match first {
            '0'..='9' => Token::Number(word.parse().map_err(|_| format!("{word:?} is no number"))?),
            '+' | '-' | '*' | '/' | '(' | ')' | ',' => Token::Sign(first),
            _ if is_word(first) => Token::Name(word.to_owned()),
            _ => return Err(format!("{first:?} means nothing in {text:?}")),
        });
        rest = after.trim_start();
    }
    Ok(tokens)
}

struct Parser {
    tokens: Peekable<IntoIter<Token>>,
}

impl Parser {
    fn sum(&mut self) -> Result<Tree, String> {
        let operators = [('+', Operator::Plus), ('-', Operator::Minus)];
        self.chain(operators, Self::product)
    }

    fn product(&mut self) -> Result<Tree, String> {
        let operators = [('*', Operator::Times), ('/', Operator::Over)];
        self.chain(operators, Self::atom)
    }

    /// Operands with `operators` between them, from left to right.
    fn chain(
        &mut self,
        operators: [(char, Operator); 2],
        operand: fn(&mut Self) -> Result<Tree, String>,
    ) -> Result<Tree, String> {
        let mut left = operand(self)?;
        while let Some((_, operator)) = operators.into_iter().find(|(sign, _)| self.takes(*sign)) {
            left = Tree::Both(operator, Box::new([left, operand(self)?]));
        }
        Ok(left)
    }

    fn atom(&mut self) -> Result<Tree, String> {
        match self.tokens.next() {
            Some(Token::Number(number)) => Ok(Tree::Number(number)),
            Some(Token::Name(name)) if name == "min" => self.list().map(Tree::Least),
            Some(Token::Name(name)) if name == "max" => self.list().map(Tree::Most),
            Some(Token::Name(name)) if name == "pow2" => {
                self.expect('(')?;
                let inner = self.sum()?;
                self.expect(')').map(|()| Tree::PowerOfTwo(Box::new(inner)))
            }
            Some(Token::Name(name)) => Variable::named(&name).map(Tree::Variable),
            Some(Token::Sign('(')) => {
                let inner = self.sum()?;
                self.expect(')').map(|()| inner)
            }
            Some(token) => Err(format!("{token} where a number was expected")),
            None => Err("it ends where a number was expected".into()),
        }
    }

    fn list(&mut self) -> Result<Vec<Tree>, String> {
        self.expect('(')?;
        let mut items = vec![self.sum()?];
        while self.takes(',') {
            items.push(self.sum()?);
        }
        self.expect(')').map(|()| items)
    }

    fn expect(&mut self, sign: char) -> Result<(), String> {
        match self.takes(sign) {
            true => Ok(()),
            false => Err(format!("no {sign:?} where one was expected")),
        }
    }

    fn takes(&mut self, sign: char) -> bool {
        self.tokens
            .next_if(|token| *token == Token::Sign(sign))
            .is_some()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::profile::reference;

    fn value(text: &str) -> u64 {
        Formula::parse(text).unwrap().value(&reference())
    }

    #[test]
    fn operators_bind_as_in_arithmetic() {
        assert_eq!(value("2 + 3 * 4 - 6 / 2"), 11);
        assert_eq!(value("(2 + 3) * 4"), 20);
        assert_eq!(value("20 / 2 / 5 - 1 - 1"), 0);
        assert_eq!(value("max(1, min(7, connections), 3)"), 7);
        assert_eq!(value("ram_pages * 4096 - ram_bytes"), 0);
        assert_eq!(value(" connections+1 "), 1_000_001);
        assert_eq!(value("pow2(1000) + pow2(1024)"), 2048);
    }

    #[test]
    fn results_saturate() {
        assert_eq!(value("1 - 2"), 0);
        assert_eq!(value("ram_bytes * ram_bytes"), u64::MAX);
        assert_eq!(value("1 / 0"), u64::MAX);
        assert_eq!(value("pow2(1 / 0)"), u64::MAX);
    }

    #[test]
    fn what_is_no_formula_is_refused_in_words() {
        for (text, words) in [
            ("", "ends"),
            ("1 +", "ends"),
            ("1 2", "after the end"),
            ("(1", "')'"),
            ("max()", "expected"),
            ("max 1", "'('"),
            ("cores", "no variable"),
            ("1 % 2", "'%'"),
            ("99999999999999999999", "no number"),
            ("1k", "no number"),
        ] {
            let error = Formula::parse(text).unwrap_err();
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "[a-z0-9+*/(), -]{0,40}|\\PC{0,20}") {
            if let Ok(formula) = Formula::parse(&text) {
                prop_assert_eq!(formula.to_string(), text.trim());
                formula.value(&reference());
            }
        }
    }
}
