//! The language of `--where`: comparisons of a task's fields, joined by `and`, `or` and `not`, and questions about the
//! objects of its answer. Text in, a predicate out; unknown fields, impossible values and trailing text are refused with
//! their column. Pure.
//!
//! ```text
//! expression = conjunction { "or" conjunction }
//! conjunction = negation { "and" negation }
//! negation = "not" negation | "(" expression ")" | comparison | flag | objects
//! comparison = field operator (value | field)
//!            | field "in" "(" value { "," value } ")"
//!            | field "like" pattern
//! objects = "count" "(" [ label | expression ] ")" operator number
//!         | ("any" | "all") "(" expression ")"
//! operator = "=" | "!=" | "<" | "<=" | ">" | ">="
//! ```
//! The expression between the parentheses of `count`, `any` and `all` is about one object: its fields are label,
//! confidence and area. An absent value (a label that nobody gave, the objects of an answer that is not a detector's)
//! makes every comparison false; `all` holds of no objects.

use std::cmp::Ordering;
use std::fmt;

use schemas::DetectedObject;
use wildmatch::WildMatch;

use crate::field::{FLAGS, FieldKind, FieldValue, NUMBERS, OBJECT_FIELDS, TEXTS, TaskField};
use crate::row::{TaskRow, object_value};

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
    /// How many objects meet the condition, all without one.
    Count(Option<Box<ExpressionNode>>, ExpressionOperator, u64),
    Any(Box<ExpressionNode>),
    All(Box<ExpressionNode>),
}

/// What a condition is about.
#[derive(Clone, Copy)]
enum ExpressionSubject<'a> {
    Task(&'a TaskRow),
    Object(&'a DetectedObject),
}

impl<'a> ExpressionSubject<'a> {
    fn value(self, field: TaskField) -> Option<FieldValue> {
        match self {
            ExpressionSubject::Task(row) => row.value(field),
            ExpressionSubject::Object(object) => object_value(object, field),
        }
    }

    /// The objects of a detector's answer.
    fn objects(self) -> Option<&'a [DetectedObject]> {
        match self {
            ExpressionSubject::Task(row) => row.objects.as_deref(),
            ExpressionSubject::Object(_) => None,
        }
    }
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

impl ExpressionOperator {
    /// Whether two values in this order meet it.
    fn accepts(self, order: Ordering) -> bool {
        match self {
            ExpressionOperator::Equal => order.is_eq(),
            ExpressionOperator::Unequal => order.is_ne(),
            ExpressionOperator::Less => order.is_lt(),
            ExpressionOperator::AtMost => order.is_le(),
            ExpressionOperator::More => order.is_gt(),
            ExpressionOperator::AtLeast => order.is_ge(),
        }
    }
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
        let mut parser = ExpressionParser { tokens, at: 0, end: text.chars().count(), nested: 0, within: None };
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
        holds(&self.0, ExpressionSubject::Task(row))
    }
}

fn holds(node: &ExpressionNode, of: ExpressionSubject<'_>) -> bool {
    match node {
        ExpressionNode::Or(nodes) => nodes.iter().any(|node| holds(node, of)),
        ExpressionNode::And(nodes) => nodes.iter().all(|node| holds(node, of)),
        ExpressionNode::Not(node) => !holds(node, of),
        ExpressionNode::Flag(field) => of.value(*field) == Some(FieldValue::Flag(true)),
        ExpressionNode::Compare(field, operator, right) => {
            let right = match right {
                ExpressionOperand::Value(value) => Some(value.clone()),
                ExpressionOperand::Field(field) => of.value(*field),
            };
            of.value(*field).zip(right).is_some_and(|(left, right)| compare(*field, *operator, &left, &right))
        }
        ExpressionNode::In(field, values) => of
            .value(*field)
            .is_some_and(|left| values.iter().any(|right| compare(*field, ExpressionOperator::Equal, &left, right))),
        ExpressionNode::Like(field, pattern) => match of.value(*field) {
            Some(FieldValue::Text(text)) => pattern.matches(&text),
            _ => false,
        },
        ExpressionNode::Count(condition, operator, number) => of.objects().is_some_and(|objects| {
            let counts = |object: &&DetectedObject| condition.as_ref().is_none_or(|node| holds_of(node, object));
            let count = objects.iter().filter(counts).count() as u64;
            operator.accepts(count.cmp(number))
        }),
        ExpressionNode::Any(node) => {
            of.objects().is_some_and(|objects| objects.iter().any(|object| holds_of(node, object)))
        }
        ExpressionNode::All(node) => {
            of.objects().is_some_and(|objects| objects.iter().all(|object| holds_of(node, object)))
        }
    }
}

fn holds_of(node: &ExpressionNode, object: &DetectedObject) -> bool {
    holds(node, ExpressionSubject::Object(object))
}

fn compare(field: TaskField, operator: ExpressionOperator, left: &FieldValue, right: &FieldValue) -> bool {
    let order = match (left, right) {
        // A release matches by the first digits of its digest.
        (FieldValue::Text(left), FieldValue::Text(right))
            if field == TaskField::Release && left.starts_with(right.as_ref()) =>
        {
            Some(Ordering::Equal)
        }
        (FieldValue::Text(left), FieldValue::Text(right)) => Some(left.cmp(right)),
        (FieldValue::Number(left), FieldValue::Number(right)) => left.partial_cmp(right),
        _ => None,
    };
    order.is_some_and(|order| operator.accepts(order))
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
    /// The question about objects that is being read, if it is.
    within: Option<ObjectQuestion>,
}

/// A question about the objects of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ObjectQuestion {
    Count,
    Any,
    All,
}

impl ObjectQuestion {
    fn named(word: &str) -> Option<Self> {
        [Self::Count, Self::Any, Self::All].into_iter().find(|question| word.eq_ignore_ascii_case(question.as_str()))
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Any => "any",
            Self::All => "all",
        }
    }
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
        } else if let Some(question) = self.question() {
            self.objects(question)?
        } else {
            self.comparison()?
        };
        self.nested -= 1;
        Ok(node)
    }

    /// The question about objects that begins here: its word, followed by a parenthesis.
    fn question(&self) -> Option<ObjectQuestion> {
        let TokenKind::Word(word) = &self.peek()?.is else { return None };
        let opens = self.tokens.get(self.at + 1).is_some_and(|token| token.is == TokenKind::Open);
        ObjectQuestion::named(word).filter(|_| opens)
    }

    fn objects(&mut self, question: ObjectQuestion) -> Result<ExpressionNode, ExpressionFault> {
        let name = question.as_str();
        let at = self.peek().map_or(self.end, |token| token.at);
        if let Some(outer) = self.within {
            return Err((at, format!("{name} cannot stand inside {}; an object has no objects", outer.as_str())));
        }
        // The word and its parenthesis, which `question` saw.
        self.at += 2;
        self.within = Some(question);
        let condition = self.objects_condition(question)?;
        self.within = None;
        let close = self.next("a )")?;
        if close.is != TokenKind::Close {
            return Err((close.at, format!("unexpected {}; join conditions with and, or", close.describe())));
        }
        match (question, condition) {
            (ObjectQuestion::Count, condition) => self.count(condition),
            (ObjectQuestion::Any, Some(node)) => Ok(ExpressionNode::Any(Box::new(node))),
            (ObjectQuestion::All, Some(node)) => Ok(ExpressionNode::All(Box::new(node))),
            (_, None) => Err((close.at, format!("{name} needs a condition, such as {name}(confidence < 0.4)"))),
        }
    }

    /// What stands between the parentheses; of a count also nothing, or a label alone.
    fn objects_condition(&mut self, question: ObjectQuestion) -> Result<Option<ExpressionNode>, ExpressionFault> {
        let closes = |token: Option<&ExpressionToken>| token.is_some_and(|token| token.is == TokenKind::Close);
        if closes(self.peek()) {
            return Ok(None);
        }
        let label = match self.peek().map(|token| &token.is) {
            Some(TokenKind::Word(label) | TokenKind::Quoted(label)) if closes(self.tokens.get(self.at + 1)) => {
                label.clone()
            }
            _ => return self.or().map(Some),
        };
        if question != ObjectQuestion::Count {
            let (at, name) = (self.peek().map_or(self.end, |token| token.at), question.as_str());
            return Err((at, format!("{name} needs a condition, such as {name}(label = '{label}')")));
        }
        self.at += 1;
        let operand = ExpressionOperand::Value(FieldValue::Text(label.into()));
        Ok(Some(ExpressionNode::Compare(TaskField::Label, ExpressionOperator::Equal, operand)))
    }

    fn count(&mut self, condition: Option<ExpressionNode>) -> Result<ExpressionNode, ExpressionFault> {
        let expected = "a comparison of the count, such as > 2";
        let token = self.next(expected)?;
        let TokenKind::Operator(operator) = token.is else {
            return Err((token.at, format!("expected {expected}, found {}", token.describe())));
        };
        let number = self.next("a whole number")?;
        let count = match &number.is {
            TokenKind::Word(word) => word.parse().ok(),
            _ => None,
        };
        let count =
            count.ok_or_else(|| (number.at, "a count is compared with a whole number, such as 2".to_owned()))?;
        Ok(ExpressionNode::Count(condition.map(Box::new), operator, count))
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
        if let Some(question) = self.within {
            let of = OBJECT_FIELDS.map(TaskField::as_str).join(", ");
            let (name, question) = (name.clone(), question.as_str());
            return TaskField::of_object(&name)
                .map(|field| (field, token.at))
                .ok_or_else(|| (token.at, format!("no field {name} inside {question}; an object has {of}")));
        }
        let field = TaskField::named(name).ok_or_else(|| {
            if TaskField::of_object(name).is_some() {
                return (token.at, format!("{name} is of an object; write any({name} > 0.1) or all({name} > 0.1)"));
            }
            if let Some(question) = ObjectQuestion::named(name) {
                let question = question.as_str();
                return (token.at, format!("{question} needs a ( after it, such as {question}(label = fish)"));
            }
            let names = |fields: &[TaskField]| fields.iter().map(TaskField::to_string).collect::<Vec<_>>().join(", ");
            let (texts, numbers, flags) = (names(&TEXTS), names(&NUMBERS), names(&FLAGS));
            (token.at, format!("no field {name}; text fields: {texts}; number fields: {numbers}; flags: {flags}"))
        })?;
        Ok((field, token.at))
    }

    fn right(&mut self, field: TaskField) -> Result<ExpressionOperand, ExpressionFault> {
        let token = self.next("a value")?;
        if let TokenKind::Word(word) = &token.is
            && let Some(other) = self.operand(word).filter(|other| other.kind() == field.kind())
            // `reason = label_threshold` compares with the value, not with a field of that name.
            && field.values().is_none()
        {
            return Ok(ExpressionOperand::Field(other));
        }
        value(field, &token).map(ExpressionOperand::Value)
    }

    /// The field that a word on the right side names.
    fn operand(&self, word: &str) -> Option<TaskField> {
        if self.within.is_some() { TaskField::of_object(word) } else { TaskField::named(word) }
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
    use crate::row::tests::{detected_row, row};

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
    fn objects_are_counted_and_asked_about() {
        let holds =
            |text: &str, row: &TaskRow| Expression::parse(text).unwrap_or_else(|error| panic!("{error}")).matches(row);
        let empty = TaskRow { objects: Some(Vec::new().into()), ..detected_row() };
        for (text, found, nothing) in [
            ("count() = 2", true, false),
            ("count() = 0", false, true),
            ("count(fish) >= 1 and count('crab') = 1", true, false),
            ("count(shark) = 0", true, true),
            ("count(confidence < 0.4) = 1", true, false),
            ("count(label = fish and area > 20%) > 0", true, false),
            ("count(not label in (fish, crab)) != 0", false, false),
            ("COUNT( label like 'c*' ) < 2", true, true),
            ("any(confidence < 0.4)", true, false),
            ("any(label = fish and confidence < 0.5)", false, false),
            ("any(label = 'crab' and confidence < 0.5) or count(person) > 2", true, false),
            ("all(confidence >= 0.3)", true, true),
            ("all(area > 0.1)", false, true),
            ("not any(area <= 0.1) and hard", false, true),
            ("(count(crab) = 1) and not (all(label = crab))", true, false),
            ("any(confidence = area)", false, false),
        ] {
            assert_eq!(holds(text, &detected_row()), found, "{text}");
            assert_eq!(holds(text, &empty), nothing, "{text} of nothing");
        }
        for text in ["count() = 0", "count() >= 0", "any(area > 0)", "all(area > 0)"] {
            assert!(!holds(text, &row()), "{text} of an answer that lists no objects");
            assert!(holds(&format!("not {text}"), &row()), "not {text}");
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
            ("count(fish)", 12, "the condition ends where a comparison of the count"),
            ("count(fish) > some", 15, "a whole number"),
            ("count(fish) > 1.5", 15, "a whole number"),
            ("count(fish) > -1", 15, "a whole number"),
            ("count(fish) and hard", 13, "expected a comparison of the count"),
            ("count(fish", 7, "no field fish inside count"),
            ("count(fish crab) > 1", 7, "no field fish inside count"),
            ("count > 1", 1, "needs a ("),
            ("any()", 5, "needs a condition, such as any(confidence"),
            ("all(fish)", 5, "such as all(label = 'fish')"),
            ("any(camera = a)", 5, "no field camera inside any; an object has label, confidence, area"),
            ("any(count() > 1)", 5, "count cannot stand inside any"),
            ("any(confidence < 0.4 hard)", 22, "unexpected hard"),
            ("any(area > 3)", 12, "0 to 1"),
            ("area > 0.1", 1, "area is of an object"),
        ] {
            let error = Expression::parse(text).expect_err(text);
            assert!(error.column == column && error.why.contains(word), "{text}: {error}");
            assert_eq!(error.to_string().lines().last().unwrap().len(), column + 2, "{error}");
        }
        assert!(Expression::parse(&"(".repeat(100_000)).is_err());
        assert!(Expression::parse(&"not ".repeat(100_000)).is_err());
        assert!(Expression::parse(&"any(".repeat(100_000)).is_err());
        assert!(Expression::parse(&format!("any({}", "(".repeat(100_000))).is_err());
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
