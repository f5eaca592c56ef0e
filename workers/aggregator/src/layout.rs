//! Which tensors of a model are trained, end to end as one row of numbers: what is weighed and merged is such a row.

use std::collections::BTreeMap;

use training::weights::Tensors;

/// One tensor's place in the row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The tensor's name in the model.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Where it begins, in numbers.
    pub start: usize,
    /// How many numbers it has.
    pub len: usize,
}

/// The places of all trained tensors, by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    places: Vec<Place>,
    len: usize,
}

impl Layout {
    /// Of these tensors, each with its shape.
    pub fn new(shapes: BTreeMap<String, Vec<usize>>) -> Self {
        let mut layout = Self::default();
        for (name, shape) in shapes {
            let (start, len) = (layout.len, shape.iter().product());
            layout.places.push(Place { name, shape, start, len });
            layout.len += len;
        }
        layout
    }

    /// In the order of their names.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// Numbers in the row.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is trained.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The tensors of a row.
    pub fn tensors(&self, row: &[f32]) -> Tensors {
        let of = |place: &Place| (place.shape.clone(), row[place.start..place.start + place.len].to_vec());
        self.places.iter().map(|place| (place.name.clone(), of(place))).collect()
    }

    /// The row of tensors that all have their place; `None` if one is missing or of another size.
    pub fn row(&self, tensors: &BTreeMap<String, Vec<f32>>) -> Option<Vec<f32>> {
        let mut row = Vec::with_capacity(self.len);
        for place in &self.places {
            let values = tensors.get(&place.name).filter(|values| values.len() == place.len)?;
            row.extend_from_slice(values);
        }
        Some(row)
    }
}
