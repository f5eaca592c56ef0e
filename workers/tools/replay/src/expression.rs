//! The language of `--where`: comparisons of a task's fields, joined by `and`, `or` and `not`. Text in, a predicate
//! out; unknown fields, impossible values and trailing text are refused with their column. Pure.
//!
//! ```text
//! expression = conjunction { "or" conjunction }
//! conjunction = negation { "and" negation }
//! negation = "not" negation | "(" expression ")" | comparison | flag
//! comparison = field ("=" | "!=" | "<" | "<=" | ">" | ">=") (value | field)
//!            | field "in" "(" value { "," value } ")"
//!            | field "like" pattern
//! ```
//! An absent value (a label that nobody gave) makes every comparison false.

use std::fmt;

use wildmatch::WildMatch;

use crate::field::{FLAGS, FieldKind, FieldValue, NUMBERS, TEXTS, TaskField};
use crate::row::TaskRow;

/// Deepest nesting of conditions.
const MAX_NESTED: usize = 64;

/// A condition on tasks.
#[derive(Debug, Clone, PartialEq)]
pub struct Expression(ExpressionNode);

#[derive(Debug, Clone, PartialEq)]
enum ExpressionNode {
    Or(Vec<ExpressionNode>),
    And(Vec<ExpressionNode>),
    Not(Box<ExpressionNode>),
    Flag(TaskField),
    Compare(TaskField, ExpressionOperator, ExpressionOperand),
    In(TaskField, Vec<FieldValue>),
    Like(TaskField, WildMatch),
}

#[derive(Debug, Clone, PartialEq)]
enum ExpressionOperand {
    Value(FieldValue),
    Field(TaskField),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ExpressionOperator {
    Equal,
    Unequal,
    Less,
    AtMost,
    More,
    AtLeast,
}

/// Why a condition is invalid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpressionError {
    /// The condition.
    pub text: String,
    /// Position of the error, in characters from 1.
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
    /// Parses a condition.
    ///
    /// # Errors
    /// What is wrong, and at which column.
    pub fn parse(text: &str) -> Result<Self, ExpressionError> {
        let failed = |(at, why): ExpressionFault| ExpressionError { text: text.into(), column: at + 1, why };
        let tokens = tokens(text).map_err(failed)?;
        let mut parser = ExpressionParser { tokens, at: 0, end: text.chars().count(), nested: 0 };
        let node = parser.or().map_err(failed)?;
        match parser.peek() {
            None => Ok(Self(node)),
            Some(left) => {
                Err(failed((left.at, format!("unexpected {}; join conditions with and, or", left.describe()))))
            }
        }
    }

    /// Whether a task meets the condition.
    pub fn matches(&self, row: &TaskRow) -> bool {
        holds(&self.0, row)
    }
}

fn holds(node: &ExpressionNode, row: &TaskRow) -> bool {
    match node {
        ExpressionNode::Or(nodes) => nodes.iter().any(|node| holds(node, row)),
        ExpressionNode::And(nodes) => nodes.iter().all(|node| holds(node, row)),
        ExpressionNode::Not(node) => !holds(node, row),
        ExpressionNode::Flag(field) => row.value(*field) == Some(FieldValue::Flag(true)),
        ExpressionNode::Compare(field, operator, right) => {
            let right = match right {
                ExpressionOperand::Value(value) => Some(value.clone()),
                ExpressionOperand::Field(field) => row.value(*field),
            };
            row.value(*field).zip(right).is_some_and(|(left, right)| compare(*field, *operator, &left, &right))
        }
        ExpressionNode::In(field, values) => row
            .value(*field)
            .is_some_and(|left| values.iter().any(|right| compare(*field, ExpressionOperator::Equal, &left, right))),
        ExpressionNode::Like(field, pattern) => match row.value(*field) {
            Some(FieldValue::Text(text)) => pattern.matches(&text),
            _ => false,
        },
    }
}

fn compare(field: TaskField, operator: ExpressionOperator, left: &FieldValue, right: &FieldValue) -> bool {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let order = match (left, right) {
        // A release matches by the first digits of its digest.
        (FieldValue::Text(left), FieldValue::Text(right))
            if field == TaskField::Release && left.starts_with(right.as_ref()) =>
        {
            Some(Equal)
        }
        (FieldValue::Text(left), FieldValue::Text(right)) => Some(left.cmp(right)),
        (FieldValue::Number(left), FieldValue::Number(right)) => left.partial_cmp(right),
        _ => None,
    };
    match operator {
        ExpressionOperator::Equal => order == Some(Equal),
        ExpressionOperator::Unequal => matches!(order, Some(Less | Greater)),
        ExpressionOperator::Less => order == Some(Less),
        ExpressionOperator::AtMost => matches!(order, Some(Less | Equal)),
        ExpressionOperator::More => order == Some(Greater),
        ExpressionOperator::AtLeast => matches!(order, Some(Greater | Equal)),
    }
}

/// Position in characters from 0, and what is wrong.
type ExpressionFault = (usize, String);

#[derive(Debug, Clone, PartialEq)]
struct ExpressionToken {
    at: usize,
    is: TokenKind,
}

#[derive(Debug, Clone, PartialEq)]
enum TokenKind {
    Word(String),
    Quoted(String),
    Operator(ExpressionOperator),
    Open,
    Close,
    Comma,
}

impl ExpressionToken {
    fn describe(&self) -> String {
        match &self.is {
            TokenKind::Word(word) => word.clone(),
            TokenKind::Quoted(text) => format!("\"{text}\""),
            TokenKind::Operator(_) => "operator".into(),
            TokenKind::Open => "(".into(),
            TokenKind::Close => ")".into(),
            TokenKind::Comma => ",".into(),
        }
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(&self.is, TokenKind::Word(said) if said.eq_ignore_ascii_case(word))
    }
}

fn tokens(text: &str) -> Result<Vec<ExpressionToken>, ExpressionFault> {
    let chars: Vec<char> = text.chars().collect();
    let (mut tokens, mut at) = (Vec::new(), 0);
    while let Some(&c) = chars.get(at) {
        let next = chars.get(at + 1).copied();
        let (is, length) = match c {
            _ if c.is_whitespace() => {
                at += 1;
                continue;
            }
            '(' => (TokenKind::Open, 1),
            ')' => (TokenKind::Close, 1),
            ',' => (TokenKind::Comma, 1),
            '=' if next == Some('=') => (TokenKind::Operator(ExpressionOperator::Equal), 2),
            '=' => (TokenKind::Operator(ExpressionOperator::Equal), 1),
            '!' if next == Some('=') => (TokenKind::Operator(ExpressionOperator::Unequal), 2),
            '<' if next == Some('=') => (TokenKind::Operator(ExpressionOperator::AtMost), 2),
            '<' => (TokenKind::Operator(ExpressionOperator::Less), 1),
            '>' if next == Some('=') => (TokenKind::Operator(ExpressionOperator::AtLeast), 2),
            '>' => (TokenKind::Operator(ExpressionOperator::More), 1),
            '\'' | '"' => {
                let length = chars.iter().skip(at + 1).position(|end| *end == c);
                let length = length.ok_or_else(|| (at, format!("this {c} is not closed")))?;
                (TokenKind::Quoted(chars.iter().skip(at + 1).take(length).collect()), length + 2)
            }
            _ if is_word_character(c) => {
                let word: String = chars.iter().skip(at).take_while(|c| is_word_character(**c)).collect();
                let length = word.chars().count();
                (TokenKind::Word(word), length)
            }
            _ => return Err((at, format!("unexpected {c:?}; quote text that contains it"))),
        };
        tokens.push(ExpressionToken { at, is });
        at += length;
    }
    Ok(tokens)
}

fn is_word_character(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '+' | '%' | '*' | '?' | '/')
}

struct ExpressionParser {
    tokens: Vec<ExpressionToken>,
    at: usize,
    end: usize,
    nested: usize,
}

impl ExpressionParser {
    fn peek(&self) -> Option<&ExpressionToken> {
        self.tokens.get(self.at)
    }

    fn next(&mut self, expected: &str) -> Result<ExpressionToken, ExpressionFault> {
        let token = self
            .peek()
            .cloned()
            .ok_or_else(|| (self.end, format!("the condition ends where {expected} is expected")))?;
        self.at += 1;
        Ok(token)
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = self.peek().is_some_and(|token| token.is_word(word));
        self.at += usize::from(found);
        found
    }

    fn or(&mut self) -> Result<ExpressionNode, ExpressionFault> {
        let mut nodes = vec![self.and()?];
        while self.take_word("or") {
            nodes.push(self.and()?);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { ExpressionNode::Or(nodes) })
    }

    fn and(&mut self) -> Result<ExpressionNode, ExpressionFault> {
        let mut nodes = vec![self.not()?];
        while self.take_word("and") {
            nodes.push(self.not()?);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { ExpressionNode::And(nodes) })
    }

    fn not(&mut self) -> Result<ExpressionNode, ExpressionFault> {
        let at = self.peek().map_or(self.end, |token| token.at);
        self.nested += 1;
        if self.nested > MAX_NESTED {
            return Err((at, format!("conditions are nested more than {MAX_NESTED} deep")));
        }
        let node = if self.take_word("not") {
            ExpressionNode::Not(Box::new(self.not()?))
        } else if self.peek().is_some_and(|token| token.is == TokenKind::Open) {
            self.at += 1;
            let inner = self.or()?;
            let close = self.next("a )")?;
            if close.is != TokenKind::Close {
                return Err((close.at, format!("expected ), found {}", close.describe())));
            }
            inner
        } else {
            self.comparison()?
        };
        self.nested -= 1;
        Ok(node)
    }

    fn comparison(&mut self) -> Result<ExpressionNode, ExpressionFault> {
        let (field, at) = self.field()?;
        let kind = field.kind();
        if kind == FieldKind::Flag {
            return match self.peek() {
                Some(ExpressionToken { at, is: TokenKind::Operator(_) }) => {
                    Err((*at, format!("{field} is a flag; write {field} or not {field}")))
                }
                _ => Ok(ExpressionNode::Flag(field)),
            };
        }
        let expected = "a comparison (=, !=, <, <=, >, >=, in, like)";
        let token = self.next(expected)?;
        match token.is {
            TokenKind::Operator(operator) => {
                let ordered = !matches!(operator, ExpressionOperator::Equal | ExpressionOperator::Unequal);
                if ordered && kind == FieldKind::Text {
                    return Err((token.at, format!("{field} is text; use =, !=, in or like")));
                }
                Ok(ExpressionNode::Compare(field, operator, self.right(field)?))
            }
            TokenKind::Word(word) if word.eq_ignore_ascii_case("in") => {
                Ok(ExpressionNode::In(field, self.list(field)?))
            }
            TokenKind::Word(word) if word.eq_ignore_ascii_case("like") => {
                if kind != FieldKind::Text {
                    return Err((at, format!("{field} is a number; like is for text")));
                }
                let pattern = self.next("a pattern, such as 'fish*'")?;
                match pattern.is {
                    TokenKind::Word(text) | TokenKind::Quoted(text) => {
                        Ok(ExpressionNode::Like(field, WildMatch::new(&text)))
                    }
                    _ => Err((pattern.at, "expected a pattern, such as 'fish*'".into())),
                }
            }
            _ => Err((token.at, format!("expected {expected}, found {}", token.describe()))),
        }
    }

    fn field(&mut self) -> Result<(TaskField, usize), ExpressionFault> {
        let token = self.next("a field")?;
        let TokenKind::Word(name) = &token.is else {
            return Err((token.at, format!("expected a field, found {}", token.describe())));
        };
        let field = TaskField::named(name).ok_or_else(|| {
            let names = |fields: &[TaskField]| fields.iter().map(TaskField::to_string).collect::<Vec<_>>().join(", ");
            let (texts, numbers, flags) = (names(&TEXTS), names(&NUMBERS), names(&FLAGS));
            (token.at, format!("no field {name}; text fields: {texts}; number fields: {numbers}; flags: {flags}"))
        })?;
        Ok((field, token.at))
    }

    fn right(&mut self, field: TaskField) -> Result<ExpressionOperand, ExpressionFault> {
        let token = self.next("a value")?;
        if let TokenKind::Word(word) = &token.is
            && let Some(other) = TaskField::named(word).filter(|other| other.kind() == field.kind())
            // `reason = label_threshold` compares with the value, not with a field of that name.
            && field.values().is_none()
        {
            return Ok(ExpressionOperand::Field(other));
        }
        value(field, &token).map(ExpressionOperand::Value)
    }

    fn list(&mut self, field: TaskField) -> Result<Vec<FieldValue>, ExpressionFault> {
        let open = self.next("a list such as (a, b)")?;
        if open.is != TokenKind::Open {
            return Err((open.at, "expected a list in parentheses, such as (a, b)".into()));
        }
        let mut values = Vec::new();
        loop {
            let token = self.next("a value")?;
            values.push(value(field, &token)?);
            let after = self.next("a , or a )")?;
            match after.is {
                TokenKind::Comma => {}
                TokenKind::Close => return Ok(values),
                _ => return Err((after.at, format!("expected , or ), found {}", after.describe()))),
            }
        }
    }
}

fn value(field: TaskField, token: &ExpressionToken) -> Result<FieldValue, ExpressionFault> {
    let (TokenKind::Word(text) | TokenKind::Quoted(text)) = &token.is else {
        return Err((token.at, format!("expected a value for {field}, found {}", token.describe())));
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
    fn each_kind_of_condition_is_parsed() {
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
    fn an_absent_value_makes_every_comparison_false() {
        assert!(!holds("person = fish") && !holds("person != fish"));
        assert!(holds("not person = fish"));
    }

    #[test]
    fn an_error_points_at_its_column() {
        for (text, column, word) in [
            ("lable = fish", 1, "no field lable"),
            ("label = fish and", 17, "the condition ends"),
            ("label ~ fish", 7, "unexpected"),
            ("label = 'fish", 9, "not closed"),
            ("confidence < high", 14, "a number"),
            ("confidence < 3", 14, "0 to 1"),
            ("route = edgy", 9, "edge, redirected"),
            ("label < b", 7, "is text"),
            ("(label = a", 11, "the condition ends"),
            ("label = a b", 11, "unexpected"),
            ("hard = true", 6, "is a flag"),
            ("reason in low_margin", 11, "in parentheses"),
            ("published > yesterday", 13, "a time"),
            ("confidence like '0*'", 1, "is a number"),
            ("", 1, "the condition ends"),
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
        fn not_inverts_a_condition(confidence in 0f32..1.0) {
            let row = TaskRow { confidence: Some(confidence), ..row() };
            let at = |text: &str| Expression::parse(text).unwrap().matches(&row);
            prop_assert_ne!(at("confidence < 0.5"), at("not confidence < 0.5"));
            prop_assert_eq!(at("confidence < 0.5"), at("not confidence >= 0.5"));
        }
    }
}
