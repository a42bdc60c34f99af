//! Reads the tensors of a file that PyTorch's `torch.save` wrote, without running what is in it.
//!
//! Such a file is a zip archive without compression: a pickle that describes a dictionary, and a file of raw values for
//! each storage. The pickle is a program; here it can do nothing but build tuples, lists, dictionaries and tensors.

use std::collections::HashMap;
use std::rc::Rc;

use incontext::models::pretrained::Tensors;

use crate::trouble::{Outcome, Trouble};

/// The tensors of the dictionaries in the file, by name. Names inside a dictionary of dictionaries follow its key and a
/// dot, except for `model_state_dict`, which is what training scripts wrap a model in.
pub fn tensors(file: &[u8]) -> Outcome<Tensors> {
    let archive = Archive::read(file)?;
    let (folder, pickle) = archive
        .files
        .iter()
        .find_map(|(name, data)| Some((name.strip_suffix("data.pkl")?, *data)))
        .ok_or_else(|| refused("it has no data.pkl"))?;
    let mut machine = Machine::new(pickle);
    let root = machine.run()?;
    let mut found =
        Collected { tensors: Tensors::new(), entries: 0, bytes: 0, most: file.len().saturating_mul(REPEATS) };
    found.collect("", &root, &machine.containers, &archive, folder, 0)?;
    if found.tensors.is_empty() { Err(refused("it holds no tensors")) } else { Ok(found.tensors) }
}

fn refused(why: impl std::fmt::Display) -> Trouble {
    Trouble::new(format!("this is no PyTorch file that can be read: {why}"))
        .mend("save the model's state dictionary with torch.save(model.state_dict(), path)")
}

/// Files of a zip archive that are stored as they are.
struct Archive<'a> {
    files: HashMap<String, &'a [u8]>,
}

impl<'a> Archive<'a> {
    fn read(file: &'a [u8]) -> Outcome<Self> {
        let number = |at: usize, bytes: usize| -> Outcome<usize> {
            let bytes = at.checked_add(bytes).and_then(|end| file.get(at..end));
            let bytes = bytes.ok_or_else(|| refused("it ends too early"))?;
            Ok(bytes.iter().rev().fold(0, |n, b| n << 8 | usize::from(*b)))
        };
        // The end record is the last of its signature; PyTorch writes no comment behind it.
        let end = file.len().checked_sub(22).filter(|&at| file[at..].starts_with(b"PK\x05\x06"));
        let end = end.ok_or_else(|| refused("it is no zip archive; files of PyTorch before 1.6 are not read"))?;
        let (mut count, mut at) = (number(end + 10, 2)?, number(end + 16, 4)?);
        if at == 0xffff_ffff || count == 0xffff {
            // The 64-bit end record, found through its locator.
            let record = number(end.checked_sub(12).ok_or_else(|| refused("it ends too early"))?, 8)?;
            (count, at) = (number(record.saturating_add(32), 8)?, number(record.saturating_add(48), 8)?);
        }
        let mut files = HashMap::new();
        for _ in 0..count {
            if number(at, 4)? != 0x0201_4b50 {
                return Err(refused("its directory is damaged"));
            }
            let (method, mut size, names) = (number(at + 10, 2)?, number(at + 24, 4)?, number(at + 28, 2)?);
            let (extra, comment) = (number(at + 30, 2)?, number(at + 32, 2)?);
            let mut local = number(at + 42, 4)?;
            let name = file.get(at + 46..at + 46 + names).ok_or_else(|| refused("it ends too early"))?;
            let name = String::from_utf8_lossy(name).into_owned();
            // Sizes and places that do not fit 32 bits are in the field of type 1.
            let mut field = at + 46 + names;
            let fields_end = field + extra;
            while field + 4 <= fields_end {
                let (kind, len) = (number(field, 2)?, number(field + 2, 2)?);
                let mut place = field + 4;
                if kind == 1 {
                    if size == 0xffff_ffff {
                        size = number(place, 8)?;
                        place += 8;
                    }
                    if number(at + 20, 4)? == 0xffff_ffff {
                        place += 8;
                    }
                    if local == 0xffff_ffff {
                        local = number(place, 8)?;
                    }
                }
                field += 4 + len;
            }
            if method != 0 {
                return Err(refused(format!("'{name}' is compressed")));
            }
            let begin =
                local.saturating_add(30 + number(local.saturating_add(26), 2)? + number(local.saturating_add(28), 2)?);
            let data = begin.checked_add(size).and_then(|end| file.get(begin..end));
            files.insert(name, data.ok_or_else(|| refused("it ends too early"))?);
            at = at + 46 + names + extra + comment;
        }
        Ok(Archive { files })
    }
}

/// What a pickle can build here. A copy is a reference: containers are numbers of those that the machine holds.
#[derive(Clone, Debug)]
enum Value {
    None,
    Int(i64),
    Text(Rc<str>),
    /// The name of a class or function.
    Global(Rc<str>),
    Sequence(usize),
    Dictionary(usize),
    Storage(Rc<Storage>),
    Tensor(Rc<Tensor>),
    /// Anything else: optimiser settings and the like.
    Other,
}

#[derive(Debug)]
struct Storage {
    kind: Rc<str>,
    key: Rc<str>,
}

#[derive(Debug)]
struct Tensor {
    storage: Rc<Storage>,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

/// The lists, tuples and dictionaries of a pickle. They refer to each other by number, so one that holds itself, or a million that
/// hold each other, are as harmless as any.
#[derive(Default)]
struct Containers {
    sequences: Vec<Vec<Value>>,
    dictionaries: Vec<Vec<(Value, Value)>>,
}

impl Containers {
    fn sequence(&mut self, items: Vec<Value>) -> Value {
        self.sequences.push(items);
        Value::Sequence(self.sequences.len() - 1)
    }

    fn dictionary(&mut self) -> Value {
        self.dictionaries.push(Vec::new());
        Value::Dictionary(self.dictionaries.len() - 1)
    }

    fn items(&self, value: &Value) -> Option<&[Value]> {
        if let Value::Sequence(at) = value { self.sequences.get(*at).map(Vec::as_slice) } else { None }
    }
}

/// The pickle's stack machine.
struct Machine<'a> {
    code: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<usize, Value>,
    containers: Containers,
}

impl<'a> Machine<'a> {
    fn new(code: &'a [u8]) -> Self {
        let containers = Containers::default();
        Machine { code, at: 0, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), containers }
    }
}

impl Machine<'_> {
    fn take(&mut self, len: usize) -> Outcome<&[u8]> {
        let bytes = self.at.checked_add(len).and_then(|end| self.code.get(self.at..end));
        self.at += len;
        bytes.ok_or_else(|| refused("its pickle ends too early"))
    }

    fn number(&mut self, bytes: usize) -> Outcome<usize> {
        Ok(self.take(bytes)?.iter().rev().fold(0, |n, b| n << 8 | usize::from(*b)))
    }

    fn text(&mut self, len: usize) -> Outcome<Rc<str>> {
        Ok(String::from_utf8_lossy(self.take(len)?).into())
    }

    fn line(&mut self) -> Outcome<Rc<str>> {
        let rest = self.code.get(self.at..).unwrap_or_default();
        let len = rest.iter().position(|b| *b == b'\n').ok_or_else(|| refused("its pickle ends too early"))?;
        let line = self.text(len)?;
        self.at += 1;
        Ok(line)
    }

    fn pop(&mut self) -> Outcome<Value> {
        self.stack.pop().ok_or_else(|| refused("its pickle takes from an empty stack"))
    }

    fn since_mark(&mut self) -> Outcome<Vec<Value>> {
        let mark = self.marks.pop().filter(|mark| *mark <= self.stack.len());
        Ok(self.stack.split_off(mark.ok_or_else(|| refused("its pickle has no mark"))?))
    }

    /// Puts pairs into the dictionary on top of the stack.
    fn set(&mut self, items: Vec<Value>) {
        if let Some(Value::Dictionary(at)) = self.stack.last()
            && let Some(pairs) = self.containers.dictionaries.get_mut(*at)
        {
            let mut items = items.into_iter();
            while let (Some(key), Some(value)) = (items.next(), items.next()) {
                pairs.push((key, value));
            }
        }
    }

    fn append(&mut self, items: Vec<Value>) {
        if let Some(Value::Sequence(at)) = self.stack.last()
            && let Some(list) = self.containers.sequences.get_mut(*at)
        {
            list.extend(items);
        }
    }

    fn push_sequence(&mut self, items: Vec<Value>) {
        let value = self.containers.sequence(items);
        self.stack.push(value);
    }

    fn run(&mut self) -> Outcome<Value> {
        loop {
            let opcode = self.number(1)? as u8;
            match opcode {
                b'\x80' => drop(self.number(1)?),
                b'\x95' => drop(self.number(8)?),
                b'.' => return self.pop(),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.since_mark()?),
                b'N' => self.stack.push(Value::None),
                b'\x88' => self.stack.push(Value::Int(1)),
                b'\x89' => self.stack.push(Value::Int(0)),
                b'K' => {
                    let n = self.number(1)?;
                    self.stack.push(Value::Int(n as i64));
                }
                b'M' => {
                    let n = self.number(2)?;
                    self.stack.push(Value::Int(n as i64));
                }
                b'J' => {
                    let n = self.number(4)?;
                    self.stack.push(Value::Int(i64::from(n as u32 as i32)));
                }
                b'\x8a' => {
                    let len = self.number(1)?;
                    let bytes = self.take(len)?;
                    let mut wide = [if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 }; 8];
                    let kept = len.min(8);
                    wide[..kept].copy_from_slice(&bytes[..kept]);
                    self.stack.push(Value::Int(i64::from_le_bytes(wide)));
                }
                b'G' => {
                    self.take(8)?;
                    self.stack.push(Value::Other);
                }
                b'X' | b'T' | b'B' => {
                    let len = self.number(4)?;
                    let text = self.text(len)?;
                    self.stack.push(Value::Text(text));
                }
                b'\x8c' | b'U' | b'C' => {
                    let len = self.number(1)?;
                    let text = self.text(len)?;
                    self.stack.push(Value::Text(text));
                }
                b'}' => {
                    let value = self.containers.dictionary();
                    self.stack.push(value);
                }
                b']' | b')' | b'\x8f' => self.push_sequence(Vec::new()),
                b't' | b'l' => {
                    let items = self.since_mark()?;
                    self.push_sequence(items);
                }
                b'\x85'..=b'\x87' => {
                    let len = usize::from(opcode - b'\x84');
                    let start =
                        self.stack.len().checked_sub(len).ok_or_else(|| refused("its pickle's stack is empty"))?;
                    let items = self.stack.split_off(start);
                    self.push_sequence(items);
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item]);
                }
                b'e' | b'\x90' => {
                    let items = self.since_mark()?;
                    self.append(items);
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set(vec![key, value]);
                }
                b'u' => {
                    let items = self.since_mark()?;
                    self.set(items);
                }
                b'q' | b'r' => {
                    let key = self.number(if opcode == b'q' { 1 } else { 4 })?;
                    self.remember(key);
                }
                b'\x94' => self.remember(self.memo.len()),
                b'h' | b'j' => {
                    let key = self.number(if opcode == b'h' { 1 } else { 4 })?;
                    let value = self.memo.get(&key).cloned().ok_or_else(|| refused("its pickle recalls nothing"))?;
                    self.stack.push(value);
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.stack.push(Value::Global(format!("{module}.{name}").into()));
                }
                b'\x93' => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Value::Text(name), Value::Text(module)) = (name, module) else {
                        return Err(refused("its pickle names a class by something else than text"));
                    };
                    self.stack.push(Value::Global(format!("{module}.{name}").into()));
                }
                b'Q' => {
                    let stored = self.pop()?;
                    self.stack.push(storage(&self.containers, &stored));
                }
                b'R' | b'\x81' => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    let made = call(&mut self.containers, &function, &arguments);
                    self.stack.push(made);
                }
                b'b' => drop(self.pop()?),
                other => return Err(refused(format!("its pickle has the instruction {other:#04x}"))),
            }
        }
    }

    fn remember(&mut self, key: usize) {
        if let Some(top) = self.stack.last() {
            self.memo.insert(key, top.clone());
        }
    }
}

/// A persistent id: ("storage", class, key, device, length).
fn storage(containers: &Containers, stored: &Value) -> Value {
    match containers.items(stored) {
        Some([Value::Text(tag), Value::Global(kind), Value::Text(key), ..]) if &**tag == "storage" => {
            Value::Storage(Rc::new(Storage { kind: kind.clone(), key: key.clone() }))
        }
        _ => Value::Other,
    }
}

/// The few functions that build tensors; any other gives nothing.
fn call(containers: &mut Containers, function: &Value, arguments: &Value) -> Value {
    let Value::Global(name) = function else { return Value::Other };
    if &**name == "collections.OrderedDict" {
        return containers.dictionary();
    }
    let sizes = |value: &Value| -> Option<Vec<usize>> {
        let items = containers.items(value).filter(|items| items.len() <= DEPTH)?.iter();
        items.map(|v| if let Value::Int(n) = v { usize::try_from(*n).ok() } else { None }).collect()
    };
    match (&**name, containers.items(arguments).unwrap_or_default()) {
        ("torch._utils._rebuild_parameter", [tensor, ..]) => tensor.clone(),
        ("torch._utils._rebuild_tensor_v2", [Value::Storage(storage), Value::Int(offset), shape, strides, ..]) => {
            match (usize::try_from(*offset), sizes(shape), sizes(strides)) {
                (Ok(offset), Some(shape), Some(strides)) if shape.len() == strides.len() => {
                    Value::Tensor(Rc::new(Tensor { storage: storage.clone(), offset, shape, strides }))
                }
                _ => Value::Other,
            }
        }
        _ => Value::Other,
    }
}

/// Dictionaries in dictionaries, and axes of a tensor: more than any state dictionary has.
const DEPTH: usize = 16;
/// Entries of dictionaries that are looked at, likewise.
const ENTRIES: usize = 1 << 20;
/// How many times its own size a file may unfold to: tensors may share their values.
const REPEATS: usize = 16;

/// What is collected from the dictionaries.
struct Collected {
    tensors: Tensors,
    entries: usize,
    bytes: usize,
    /// Bytes at most.
    most: usize,
}

impl Collected {
    fn collect(
        &mut self,
        prefix: &str,
        value: &Value,
        containers: &Containers,
        archive: &Archive<'_>,
        folder: &str,
        depth: usize,
    ) -> Outcome<()> {
        match value {
            Value::Dictionary(at) if depth < DEPTH => {
                for (key, value) in containers.dictionaries.get(*at).into_iter().flatten() {
                    self.entries += 1;
                    if self.entries > ENTRIES {
                        return Err(refused("its dictionaries have entries without end"));
                    }
                    let Value::Text(key) = key else { continue };
                    let inside = matches!(value, Value::Dictionary(_));
                    let name = if inside && &**key == "model_state_dict" {
                        prefix.to_owned()
                    } else if inside {
                        format!("{prefix}{key}.")
                    } else {
                        format!("{prefix}{key}")
                    };
                    self.collect(&name, value, containers, archive, folder, depth + 1)?;
                }
                Ok(())
            }
            Value::Tensor(tensor) => {
                if let Some(values) = read(archive, folder, tensor)? {
                    self.bytes = self.bytes.saturating_add(prefix.len() + 4 * values.len());
                    if self.bytes > self.most {
                        return Err(refused("its tensors repeat each other without end"));
                    }
                    self.tensors.insert(prefix.to_owned(), (tensor.shape.clone(), values));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// The values of a tensor of floating-point numbers, row-major; none for other types.
fn read(archive: &Archive<'_>, folder: &str, tensor: &Tensor) -> Outcome<Option<Vec<f32>>> {
    let Tensor { storage, offset, shape, strides } = tensor;
    let width = match &*storage.kind {
        "torch.FloatStorage" => 4,
        "torch.DoubleStorage" => 8,
        _ => return Ok(None),
    };
    let key = &storage.key;
    let data = archive.files.get(&format!("{folder}data/{key}")).ok_or_else(|| refused(format!("no storage {key}")))?;
    let len = shape
        .iter()
        .try_fold(1_usize, |n, side| n.checked_mul(*side))
        .filter(|n| n.checked_mul(width).is_some_and(|bytes| bytes <= data.len()));
    let len = len.ok_or_else(|| refused(format!("a tensor of shape {shape:?} is larger than its storage")))?;
    let mut values = Vec::with_capacity(len);
    for k in 0..len {
        let (mut rest, mut at) = (k, Some(*offset));
        for (side, stride) in shape.iter().zip(strides).rev() {
            at = (rest % side).checked_mul(*stride).and_then(|step| at?.checked_add(step));
            rest /= side;
        }
        let begin = at.and_then(|at| at.checked_mul(width));
        let bytes = begin.and_then(|begin| data.get(begin..begin.checked_add(width)?));
        let bytes = bytes.ok_or_else(|| refused("a tensor reaches beyond its storage"))?;
        values.push(match bytes.first_chunk::<8>() {
            Some(double) => f64::from_le_bytes(*double) as f32,
            None => f32::from_le_bytes(bytes.first_chunk().copied().unwrap_or_default()),
        });
    }
    Ok(Some(values))
}

#[cfg(test)]
mod tests {
    use super::tensors;

    /// A zip archive of uncompressed files, as `torch.save` writes it.
    fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
        let (mut out, mut directory) = (Vec::new(), Vec::new());
        for (name, data) in files {
            let at = out.len() as u32;
            let sizes = [(data.len() as u32).to_le_bytes(), (data.len() as u32).to_le_bytes()].concat();
            let name_len = (name.len() as u16).to_le_bytes();
            out.extend(b"PK\x03\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00");
            out.extend(&sizes);
            out.extend(name_len);
            out.extend([0, 0]);
            out.extend(name.as_bytes());
            out.extend(*data);
            directory.extend(b"PK\x01\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00");
            directory.extend(&sizes);
            directory.extend(name_len);
            directory.extend([0; 12]);
            directory.extend(at.to_le_bytes());
            directory.extend(name.as_bytes());
        }
        let (start, count) = (out.len() as u32, files.len() as u16);
        out.extend(&directory);
        out.extend(b"PK\x05\x06\x00\x00\x00\x00");
        out.extend(count.to_le_bytes());
        out.extend(count.to_le_bytes());
        out.extend((directory.len() as u32).to_le_bytes());
        out.extend(start.to_le_bytes());
        out.extend([0, 0]);
        out
    }

    /// The pickle of {"w": a float tensor [2, 3] of storage 0 with these strides} with protocol 2.
    fn pickle(strides: [u8; 2]) -> Vec<u8> {
        let mut p = b"\x80\x02}q\x00X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((".to_vec();
        p.extend(b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ");
        p.extend([b'K', 0, b'K', 2, b'K', 3, 0x86, b'K', strides[0], b'K', strides[1], 0x86, 0x89]);
        p.extend(b"ccollections\nOrderedDict\n)RtRs.");
        p
    }

    #[test]
    fn tensors_are_read_in_their_order_whatever_their_strides() {
        let data: Vec<u8> = (0..6u8).flat_map(|v| f32::from(v).to_le_bytes()).collect();
        let read = |strides| {
            let file = zip(&[("archive/data.pkl", &pickle(strides)), ("archive/data/0", &data)]);
            tensors(&file).unwrap()["w"].clone()
        };
        assert_eq!(read([3, 1]), (vec![2, 3], vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]));
        assert_eq!(read([1, 2]), (vec![2, 3], vec![0.0, 2.0, 4.0, 1.0, 3.0, 5.0]));
    }

    #[test]
    fn what_torch_wrote_is_read() {
        let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
        let read = tensors(&std::fs::read(fixtures.join("gpt2.pt")).unwrap()).unwrap();
        let path = std::env::temp_dir().join(format!("incontext-torch-{}.safetensors", std::process::id()));
        incontext::models::pretrained::write(&path, &read).unwrap();
        let (ours, theirs) = [path.clone(), fixtures.join("gpt2.safetensors")]
            .map(|path| incontext::models::Gpt2::load(&path, 2).unwrap().values())
            .into();
        std::fs::remove_file(path).unwrap();
        assert_eq!(ours, theirs);
    }

    #[test]
    fn a_damaged_file_is_an_error_and_code_in_it_is_not_run() {
        let data = [0; 24];
        let whole = zip(&[("archive/data.pkl", &pickle([3, 1])), ("archive/data/0", &data)]);
        for length in 0..whole.len() {
            assert!(tensors(&whole[..length]).is_err(), "the first {length} bytes");
        }
        for k in 0..whole.len() {
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[k] ^= 1 << bit;
                // Values and names may be others; the process lives.
                let _ = tensors(&flipped);
            }
        }
        for beyond in [[200, 1], [3, 200]] {
            let file = zip(&[("archive/data.pkl", &pickle(beyond)), ("archive/data/0", &data)]);
            assert!(tensors(&file).is_err(), "strides {beyond:?}");
        }
        let system = b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00exit\x85R.".as_slice();
        assert!(tensors(&zip(&[("archive/data.pkl", system)])).is_err());
        let deep = [b"N".as_slice(), &[0x85; 1_000_000], b"."].concat();
        assert!(tensors(&zip(&[("archive/data.pkl", &deep)])).is_err(), "nested a million times");
        // One side of 2^62 floats, whose size in bytes is 0 in 64 bits.
        let side = [b"\x8a\x08".as_slice(), &(1_i64 << 62).to_le_bytes(), b"\x85K\x01\x85"].concat();
        let huge = pickle([3, 1]);
        let at = huge.windows(5).position(|w| w == [b'K', 2, b'K', 3, 0x86]).unwrap();
        let huge = [&huge[..at], &side, &huge[at + 10..]].concat();
        assert!(tensors(&zip(&[("archive/data.pkl", &huge), ("archive/data/0", &data)])).is_err(), "2^62 floats");
        // A list that holds itself, and one that doubles itself forty times.
        let own = b"\x80\x02]q\x00h\x00a.".as_slice();
        assert!(tensors(&zip(&[("archive/data.pkl", own)])).is_err());
        let mut laughs = b"\x80\x02]q\x00".to_vec();
        for _ in 0..40 {
            laughs.extend(b"(h\x00h\x00lq\x00");
        }
        laughs.push(b'.');
        assert!(tensors(&zip(&[("archive/data.pkl", &laughs)])).is_err());
        // A long text, recalled so often that copies of it would fill the memory.
        let recalls = b"h\x000".repeat(500_000);
        let text = [
            b"\x80\x02X\x40\x42\x0f\x00".as_slice(),
            &[b'a'; 1_000_000],
            b"q\x00",
            &b"h\x00".repeat(500_000),
            &recalls,
            b".",
        ];
        assert!(tensors(&zip(&[("archive/data.pkl", &text.concat())])).is_err());
        // Dictionaries that hold the one before eight times, and one tensor under very many names.
        let mut nested = pickle([3, 1]);
        nested.pop();
        for level in 1..12_u8 {
            nested.extend([b'}', b'q', level, b'(']);
            for name in b"abcdefgh" {
                nested.extend([b'X', 1, 0, 0, 0, *name, b'h', level - 1]);
            }
            nested.push(b'u');
        }
        nested.push(b'.');
        assert!(tensors(&zip(&[("archive/data.pkl", &nested), ("archive/data/0", &data)])).is_err());
    }

    /// The same dictionary under two names: `torch.save({"best": state, "model_state_dict": state})`.
    #[test]
    fn a_dictionary_that_is_recalled_has_what_was_put_into_it_later() {
        let data: Vec<u8> = (0..6u8).flat_map(|v| f32::from(v).to_le_bytes()).collect();
        let inner = &pickle([3, 1])[2..];
        let inner = &inner[..inner.len() - 1];
        let outer = [b"\x80\x02}(X\x04\x00\x00\x00best".as_slice(), inner, b"X\x10\x00\x00\x00model_state_dicth\x00u."]
            .concat();
        let read = tensors(&zip(&[("archive/data.pkl", &outer), ("archive/data/0", &data)])).unwrap();
        assert_eq!(read.keys().map(String::as_str).collect::<Vec<_>>(), ["best.w", "w"]);
        assert_eq!(read["w"], read["best.w"]);
    }
}
