//! Many sites' updates become one better model: check → score → weigh → merge → seal. Of that walk only [`weigh`] is here
//! yet: how much each update counts. Deliberately absent: rollout.

pub mod weigh;
