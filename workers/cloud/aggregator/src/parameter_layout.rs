//! Which tensors of a model are trained, joined end to end into one row of numbers. Rows are what is weighed and
//! merged.

use std::collections::BTreeMap;

use training::weights::NamedTensors;

/// One tensor's place in the row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSlot {
    /// The tensor's name in the model.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Index of its first number in the row.
    pub start: usize,
    /// How many numbers it has.
    pub len: usize,
}

/// The places of all trained tensors, in the order of their names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ParameterLayout {
    places: Vec<TensorSlot>,
    len: usize,
    /// For tensors of the last layer, by index: the axis along which classes lie.
    class_axes: BTreeMap<usize, usize>,
}

impl ParameterLayout {
    /// The layout of these tensors, by name and shape.
    pub fn new(shapes: BTreeMap<String, Vec<usize>>) -> Self {
        let mut layout = Self::default();
        for (name, shape) in shapes {
            let (start, len) = (layout.len, shape.iter().product());
            layout.places.push(TensorSlot { name, shape, start, len });
            layout.len += len;
        }
        layout
    }

    /// Adds the names of the last layer's tensors, whose axis of length `classes` separates the classes.
    pub fn with_last_layer(mut self, names: &[String], classes: usize) -> Self {
        let axis = |place: &TensorSlot| place.shape.iter().position(|size| *size == classes);
        let of_layer = self.places.iter().enumerate().filter(|(_, place)| names.contains(&place.name));
        self.class_axes = of_layer.filter_map(|(number, place)| Some((number, axis(place)?))).collect();
        self
    }

    /// Whether the numbers of single classes are known.
    pub fn knows_classes(&self) -> bool {
        !self.class_axes.is_empty()
    }

    /// The class that one number of a tensor belongs to; `None` if it belongs to several. `number`: index of the
    /// tensor; `at`: index in it.
    pub fn class_of(&self, number: usize, at: usize) -> Option<usize> {
        let (axis, shape) = (*self.class_axes.get(&number)?, &self.places[number].shape);
        let stride: usize = shape[axis + 1..].iter().product();
        Some(at / stride.max(1) % shape[axis].max(1))
    }

    /// The tensors in the order of their names.
    pub fn places(&self) -> &[TensorSlot] {
        &self.places
    }

    /// Length of a row.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is trained.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Splits a row into its tensors.
    pub fn tensors(&self, row: &[f32]) -> NamedTensors {
        let of = |place: &TensorSlot| (place.shape.clone(), row[place.start..place.start + place.len].to_vec());
        self.places.iter().map(|place| (place.name.clone(), of(place))).collect()
    }

    /// Joins tensors into a row; `None` if one is missing or has another size.
    pub fn row(&self, tensors: &BTreeMap<String, Vec<f32>>) -> Option<Vec<f32>> {
        let mut row = Vec::with_capacity(self.len);
        for place in &self.places {
            let values = tensors.get(&place.name).filter(|values| values.len() == place.len)?;
            row.extend_from_slice(values);
        }
        Some(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_last_layer_belong_to_a_class_in_either_axis_order() {
        let shapes = [("a", vec![4, 3]), ("b", vec![3, 2]), ("c", vec![3]), ("body", vec![3, 3])];
        let shapes = shapes.into_iter().map(|(name, shape)| (name.to_owned(), shape)).collect();
        let names = ["a", "b", "c"].map(str::to_owned);
        let layout = ParameterLayout::new(shapes).with_last_layer(&names, 3);
        let number = |name: &str| layout.places().iter().position(|place| place.name == name).unwrap();
        let classes =
            |name: &str, count: usize| (0..count).map(|at| layout.class_of(number(name), at)).collect::<Vec<_>>();
        assert_eq!(classes("a", 5), [0, 1, 2, 0, 1].map(Some));
        assert_eq!(classes("b", 6), [0, 0, 1, 1, 2, 2].map(Some));
        assert_eq!(classes("c", 3), [0, 1, 2].map(Some));
        assert_eq!(classes("body", 2), [None, None]);
        assert!(layout.knows_classes() && !ParameterLayout::default().knows_classes());
    }
}
