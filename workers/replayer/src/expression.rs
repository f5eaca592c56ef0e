//! The language of `--where`: comparisons of a task's fields, joined by `and`, `or` and `not`. Text in, a predicate out;
//! refuses unknown fields, values no field can have and anything left over, each by its column. Pure.
//!
//! ```text
//! expression = conjunction { "or" conjunction }
//! conjunction = negation { "and" negation }
//! negation = "not" negation | "(" expression ")" | comparison | flag
//! comparison = field ("=" | "!=" | "<" | "<=" | ">" | ">=") (value | field)
//!            | field "in" "(" value { "," value } ")"
//!            | field "like" pattern
//! ```
//! What is absent (a label that nobody gave) makes every comparison untrue.

use std::fmt;

use wildmatch::WildMatch;

use crate::field::{FLAGS, Field, Kind, NUMBERS, TEXTS, Value};
use crate::row::Row;

/// Deepest nesting: deeper is no condition that a person wrote.
const MOST_NESTED: usize = 64;

/// A condition on tasks.
#[derive(Debug, Clone, PartialEq)]
pub struct Expression(Node);

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Or(Vec<Node>),
    And(Vec<Node>),
    Not(Box<Node>),
    Flag(Field),
    Compare(Field, Operator, Right),
    In(Field, Vec<Value>),
    Like(Field, WildMatch),
}

#[derive(Debug, Clone, PartialEq)]
enum Right {
    Value(Value),
    Field(Field),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    Unequal,
    Less,
    AtMost,
    More,
    AtLeast,
}

/// Why a condition cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpressionError {
    /// The condition.
    pub text: String,
    /// Where, in characters from 1.
    pub column: usize,
    /// What is wrong there, and what to write instead.
    pub why: String,
}

impl fmt::Display for ExpressionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line: String = self.text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let Self { column, why, .. } = self;
        write!(f, "column {column}: {why}\n  {line}\n  {:>column$}", '^')
    }
}

impl std::error::Error for ExpressionError {}

impl Expression {
    /// Understands a condition.
    ///
    /// # Errors
    /// What is wrong, and at which column.
    pub fn parse(text: &str) -> Result<Self, ExpressionError> {
        let failed = |(at, why): Wrong| ExpressionError { text: text.into(), column: at + 1, why };
        let tokens = tokens(text).map_err(failed)?;
        let mut parser = Parser { tokens, at: 0, end: text.chars().count(), nested: 0 };
        let node = parser.or().map_err(failed)?;
        match parser.peek() {
            None => Ok(Self(node)),
            Some(left) => Err(failed((left.at, format!("{} is left over: join conditions with and, or", left.said())))),
        }
    }

    /// Whether a task meets it.
    pub fn matches(&self, row: &Row) -> bool {
        holds(&self.0, row)
    }
}

fn holds(node: &Node, row: &Row) -> bool {
    match node {
        Node::Or(nodes) => nodes.iter().any(|node| holds(node, row)),
        Node::And(nodes) => nodes.iter().all(|node| holds(node, row)),
        Node::Not(node) => !holds(node, row),
        Node::Flag(field) => row.value(*field) == Some(Value::Flag(true)),
        Node::Compare(field, operator, right) => {
            let right = match right {
                Right::Value(value) => Some(value.clone()),
                Right::Field(field) => row.value(*field),
            };
            row.value(*field).zip(right).is_some_and(|(left, right)| compare(*field, *operator, &left, &right))
        }
        Node::In(field, values) => row
            .value(*field)
            .is_some_and(|left| values.iter().any(|right| compare(*field, Operator::Equal, &left, right))),
        Node::Like(field, pattern) => match row.value(*field) {
            Some(Value::Text(text)) => pattern.matches(&text),
            _ => false,
        },
    }
}

fn compare(field: Field, operator: Operator, left: &Value, right: &Value) -> bool {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let order = match (left, right) {
        // A release is named by the first digits of its digest.
        (Value::Text(left), Value::Text(right)) if field == Field::Release && left.starts_with(right.as_ref()) => {
            Some(Equal)
        }
        (Value::Text(left), Value::Text(right)) => Some(left.cmp(right)),
        (Value::Number(left), Value::Number(right)) => left.partial_cmp(right),
        _ => None,
    };
    match operator {
        Operator::Equal => order == Some(Equal),
        Operator::Unequal => matches!(order, Some(Less | Greater)),
        Operator::Less => order == Some(Less),
        Operator::AtMost => matches!(order, Some(Less | Equal)),
        Operator::More => order == Some(Greater),
        Operator::AtLeast => matches!(order, Some(Greater | Equal)),
    }
}

/// Where, in characters from 0, and what.
type Wrong = (usize, String);

#[derive(Debug, Clone, PartialEq)]
struct Token {
    at: usize,
    is: Is,
}

#[derive(Debug, Clone, PartialEq)]
enum Is {
    Word(String),
    Quoted(String),
    Operator(Operator),
    Open,
    Close,
    Comma,
}

impl Token {
    fn said(&self) -> String {
        match &self.is {
            Is::Word(word) => word.clone(),
            Is::Quoted(text) => format!("\"{text}\""),
            Is::Operator(_) => "this sign".into(),
            Is::Open => "(".into(),
            Is::Close => ")".into(),
            Is::Comma => ",".into(),
        }
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(&self.is, Is::Word(said) if said.eq_ignore_ascii_case(word))
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, Wrong> {
    let chars: Vec<char> = text.chars().collect();
    let (mut tokens, mut at) = (Vec::new(), 0);
    while let Some(&c) = chars.get(at) {
        let next = chars.get(at + 1).copied();
        let (is, length) = match c {
            _ if c.is_whitespace() => {
                at += 1;
                continue;
            }
            '(' => (Is::Open, 1),
            ')' => (Is::Close, 1),
            ',' => (Is::Comma, 1),
            '=' if next == Some('=') => (Is::Operator(Operator::Equal), 2),
            '=' => (Is::Operator(Operator::Equal), 1),
            '!' if next == Some('=') => (Is::Operator(Operator::Unequal), 2),
            '<' if next == Some('=') => (Is::Operator(Operator::AtMost), 2),
            '<' => (Is::Operator(Operator::Less), 1),
            '>' if next == Some('=') => (Is::Operator(Operator::AtLeast), 2),
            '>' => (Is::Operator(Operator::More), 1),
            '\'' | '"' => {
                let length = chars.iter().skip(at + 1).position(|end| *end == c);
                let length = length.ok_or_else(|| (at, format!("this {c} is never closed")))?;
                (Is::Quoted(chars.iter().skip(at + 1).take(length).collect()), length + 2)
            }
            _ if is_of_word(c) => {
                let word: String = chars.iter().skip(at).take_while(|c| is_of_word(**c)).collect();
                let length = word.chars().count();
                (Is::Word(word), length)
            }
            _ => return Err((at, format!("{c:?} means nothing here: quote text that holds it"))),
        };
        tokens.push(Token { at, is });
        at += length;
    }
    Ok(tokens)
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '+' | '%' | '*' | '?' | '/')
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    end: usize,
    nested: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn next(&mut self, expected: &str) -> Result<Token, Wrong> {
        let token = self.peek().cloned().ok_or_else(|| (self.end, format!("it ends where {expected} is expected")))?;
        self.at += 1;
        Ok(token)
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = self.peek().is_some_and(|token| token.is_word(word));
        self.at += usize::from(found);
        found
    }

    fn or(&mut self) -> Result<Node, Wrong> {
        let mut nodes = vec![self.and()?];
        while self.take_word("or") {
            nodes.push(self.and()?);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::Or(nodes) })
    }

    fn and(&mut self) -> Result<Node, Wrong> {
        let mut nodes = vec![self.not()?];
        while self.take_word("and") {
            nodes.push(self.not()?);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::And(nodes) })
    }

    fn not(&mut self) -> Result<Node, Wrong> {
        let at = self.peek().map_or(self.end, |token| token.at);
        self.nested += 1;
        if self.nested > MOST_NESTED {
            return Err((at, format!("more than {MOST_NESTED} conditions inside one another")));
        }
        let node = if self.take_word("not") {
            Node::Not(Box::new(self.not()?))
        } else if self.peek().is_some_and(|token| token.is == Is::Open) {
            self.at += 1;
            let inner = self.or()?;
            let close = self.next("a )")?;
            if close.is != Is::Close {
                return Err((close.at, format!("a ) is expected here, not {}", close.said())));
            }
            inner
        } else {
            self.comparison()?
        };
        self.nested -= 1;
        Ok(node)
    }

    fn comparison(&mut self) -> Result<Node, Wrong> {
        let (field, at) = self.field()?;
        let kind = field.kind();
        if kind == Kind::Flag {
            return match self.peek() {
                Some(Token { at, is: Is::Operator(_) }) => {
                    Err((*at, format!("{field} is true or not: write {field} or not {field}")))
                }
                _ => Ok(Node::Flag(field)),
            };
        }
        let expected = "a comparison (=, !=, <, <=, >, >=, in, like)";
        let token = self.next(expected)?;
        match token.is {
            Is::Operator(operator) => {
                let ordered = !matches!(operator, Operator::Equal | Operator::Unequal);
                if ordered && kind == Kind::Text {
                    return Err((
                        token.at,
                        format!("{field} is text, which has no more and no less: use =, !=, in, like"),
                    ));
                }
                Ok(Node::Compare(field, operator, self.right(field)?))
            }
            Is::Word(word) if word.eq_ignore_ascii_case("in") => Ok(Node::In(field, self.list(field)?)),
            Is::Word(word) if word.eq_ignore_ascii_case("like") => {
                if kind != Kind::Text {
                    return Err((at, format!("{field} is a number: like is for text")));
                }
                let pattern = self.next("a pattern, such as 'fish*'")?;
                match pattern.is {
                    Is::Word(text) | Is::Quoted(text) => Ok(Node::Like(field, WildMatch::new(&text))),
                    _ => Err((pattern.at, "a pattern is expected here, such as 'fish*'".into())),
                }
            }
            _ => Err((token.at, format!("{expected} is expected here, not {}", token.said()))),
        }
    }

    fn field(&mut self) -> Result<(Field, usize), Wrong> {
        let token = self.next("a field")?;
        let Is::Word(name) = &token.is else {
            return Err((token.at, format!("a field is expected here, not {}", token.said())));
        };
        let field = Field::named(name).ok_or_else(|| {
            let names = |fields: &[Field]| fields.iter().map(Field::to_string).collect::<Vec<_>>().join(", ");
            let (texts, numbers, flags) = (names(&TEXTS), names(&NUMBERS), names(&FLAGS));
            (token.at, format!("there is no field {name}; text: {texts}; numbers: {numbers}; true or not: {flags}"))
        })?;
        Ok((field, token.at))
    }

    fn right(&mut self, field: Field) -> Result<Right, Wrong> {
        let token = self.next("a value")?;
        if let Is::Word(word) = &token.is
            && let Some(other) = Field::named(word).filter(|other| other.kind() == field.kind())
            // `reason = label_threshold`, and never a field of that name.
            && field.values().is_none()
        {
            return Ok(Right::Field(other));
        }
        value(field, &token).map(Right::Value)
    }

    fn list(&mut self, field: Field) -> Result<Vec<Value>, Wrong> {
        let open = self.next("a list such as (a, b)")?;
        if open.is != Is::Open {
            return Err((open.at, "a list in parentheses is expected here, such as (a, b)".into()));
        }
        let mut values = Vec::new();
        loop {
            let token = self.next("a value")?;
            values.push(value(field, &token)?);
            let after = self.next("a , or a )")?;
            match after.is {
                Is::Comma => {}
                Is::Close => return Ok(values),
                _ => return Err((after.at, format!("a , or a ) is expected here, not {}", after.said()))),
            }
        }
    }
}

fn value(field: Field, token: &Token) -> Result<Value, Wrong> {
    let (Is::Word(text) | Is::Quoted(text)) = &token.is else {
        return Err((token.at, format!("a value for {field} is expected here, not {}", token.said())));
    };
    field.read(text).map_err(|why| (token.at, why))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::row::tests::row;

    fn holds(text: &str) -> bool {
        let expression = Expression::parse(text).unwrap_or_else(|error| panic!("{error}"));
        expression.matches(&row())
    }

    #[test]
    fn each_kind_of_condition_is_understood() {
        for text in [
            "label = fish",
            "label == \"fish\" and confidence < 0.7",
            "confidence >= 60%",
            "reason in (low_confidence, low_margin)",
            "camera like 'cam*' or label = shark",
            "not (route = verified)",
            "truth != label",
            "hard and wrong",
            "release = 010101",
            "published < 2030-01-01 and published >= 2000-01-01T00:00:00Z",
            "site = reef and sequence > 3 and sequence <= 7",
            "NOT wrong OR labelled",
        ] {
            assert!(holds(text), "{text} does not hold");
        }
    }

    #[test]
    fn what_is_absent_makes_no_comparison_true() {
        assert!(!holds("person = fish") && !holds("person != fish"));
        assert!(holds("not person = fish"));
    }

    #[test]
    fn an_error_points_at_its_column() {
        for (text, column, word) in [
            ("lable = fish", 1, "no field lable"),
            ("label = fish and", 17, "it ends"),
            ("label ~ fish", 7, "means nothing"),
            ("label = 'fish", 9, "never closed"),
            ("confidence < high", 14, "a number"),
            ("confidence < 3", 14, "0 to 1"),
            ("route = edgy", 9, "edge, redirected"),
            ("label < b", 7, "no more and no less"),
            ("(label = a", 11, "it ends"),
            ("label = a b", 11, "left over"),
            ("hard = true", 6, "true or not"),
            ("reason in low_margin", 11, "in parentheses"),
            ("published > yesterday", 13, "a time"),
            ("confidence like '0*'", 1, "is a number"),
            ("", 1, "it ends"),
        ] {
            let error = Expression::parse(text).expect_err(text);
            assert!(error.column == column && error.why.contains(word), "{text}: {error}");
            assert_eq!(error.to_string().lines().last().unwrap().len(), column + 2, "{error}");
        }
        assert!(Expression::parse(&"(".repeat(100_000)).is_err());
        assert!(Expression::parse(&"not ".repeat(100_000)).is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,60}") {
            let _ = Expression::parse(&text).map_err(|error| error.to_string());
        }

        #[test]
        fn not_turns_a_condition_round(confidence in 0f32..1.0) {
            let row = Row { confidence: Some(confidence), ..row() };
            let at = |text: &str| Expression::parse(text).unwrap().matches(&row);
            prop_assert_ne!(at("confidence < 0.5"), at("not confidence < 0.5"));
            prop_assert_eq!(at("confidence < 0.5"), at("not confidence >= 0.5"));
        }
    }
}
