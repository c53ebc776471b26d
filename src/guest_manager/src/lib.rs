//! The guest manager component and the runner of its VMM.
