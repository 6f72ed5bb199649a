//! The division of the optimizer state and of the weight average among the ranks, by whole parameters.
//!
//! A rank receives the summed gradients of its own parameters, updates them, and sends the new weights to all ranks.
//! This takes the same traffic as adding all gradients on every rank, and the state exists once.
//!
//! Source: arXiv:1910.02054, section 5.1 (ZeRO, stage 1).

use crate::nn::parameters;
use crate::ranks::collective::Collective;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor, TensorData};
use std::collections::BTreeSet;

struct Shard {
    len: usize,
    trained: bool,
    owner: usize,
}

/// The owner of every parameter.
pub struct Shards {
    rank: usize,
    ranks: usize,
    /// One per parameter, in module order.
    all: Vec<Shard>,
    /// Ids of this rank's parameters.
    own: BTreeSet<u64>,
}

impl Shards {
    /// Distributes the parameters of a network: the largest first, each to the rank with the fewest weights so far.
    pub fn new<M: Module>(module: &M, ranks: &dyn Collective) -> Self {
        let mut all: Vec<Shard> = Vec::new();
        for (_, shape, trained) in parameters::parameters(module) {
            all.push(Shard { len: shape.iter().product(), trained, owner: 0 });
        }
        let mut largest: Vec<usize> = (0..all.len()).collect();
        largest.sort_by_key(|i| std::cmp::Reverse(all[*i].len));
        let mut loads = vec![0; ranks.size()];
        for i in largest {
            let owner = (0..loads.len()).min_by_key(|rank| loads[*rank]).unwrap_or_default();
            loads[owner] += all[i].len;
            all[i].owner = owner;
        }
        struct Ids(Vec<u64>);
        impl ModuleVisitor for Ids {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.0.push(param.id.val());
            }
        }
        let mut ids = Ids(Vec::new());
        module.visit(&mut ids);
        let own = ids.0.iter().zip(&all).filter(|(_, shard)| shard.owner == ranks.rank()).map(|(id, _)| *id).collect();
        Self { rank: ranks.rank(), ranks: ranks.size(), all, own }
    }

    /// Returns whether this rank owns the parameter with this id.
    pub fn owns(&self, id: u64) -> bool {
        self.own.contains(&id)
    }

    /// Returns, per rank, the sum of `count` over its parameters.
    fn counts(&self, count: impl Fn(&Shard) -> usize) -> Vec<usize> {
        let mut counts = vec![0; self.ranks];
        self.all.iter().for_each(|shard| counts[shard.owner] += count(shard));
        counts
    }

    /// Adds the gradients of all ranks, and returns the sums for this rank's parameters.
    pub fn reduce<M: Module>(
        &self,
        module: &M,
        ranks: &dyn Collective,
        gradients: GradientsParams,
        device: &Device,
    ) -> GradientsParams {
        struct Take<'a> {
            at: usize,
            shards: &'a Shards,
            gradients: GradientsParams,
            device: &'a Device,
            parts: Vec<(Vec<Tensor<1>>, Vec<f32>)>,
        }
        impl ModuleVisitor for Take<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let shard = &self.shards.all[self.at];
                self.at += 1;
                if !shard.trained {
                    return;
                }
                let (tensors, present) = &mut self.parts[shard.owner];
                let gradient = self.gradients.remove::<D>(param.id);
                present.push(f32::from(u8::from(gradient.is_some())));
                tensors.push(match gradient {
                    Some(gradient) => gradient.reshape([shard.len]),
                    None => Tensor::zeros([shard.len], (self.device, DType::F32)),
                });
            }
        }
        let parts = (0..self.ranks).map(|_| (Vec::new(), Vec::new())).collect();
        let mut take = Take { at: 0, shards: self, gradients, device, parts };
        module.visit(&mut take);
        let trained = |shard: &Shard| if shard.trained { shard.len + 1 } else { 0 };
        let counts = self.counts(trained);
        let mut values = Vec::with_capacity(counts.iter().sum());
        for (tensors, present) in take.parts {
            values.extend(read(tensors));
            // A rank whose passes do not use a parameter has no gradient for it. The optimizer skips a parameter only
            // if no rank has one.
            values.extend(present);
        }
        struct Give<'a> {
            at: usize,
            shards: &'a Shards,
            sums: &'a [f32],
            present: &'a [f32],
            device: &'a Device,
            gradients: GradientsParams,
        }
        impl ModuleVisitor for Give<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let shard = &self.shards.all[self.at];
                self.at += 1;
                if !shard.trained || shard.owner != self.shards.rank {
                    return;
                }
                let (sum, sums) = self.sums.split_at(shard.len);
                let (present, others) = self.present.split_at(1);
                (self.sums, self.present) = (sums, others);
                if present[0] > 0.0 {
                    let data = TensorData::new(sum.to_vec(), param.lazy_shape());
                    self.gradients.register(param.id, Tensor::<D>::from_data(data, (self.device, DType::F32)));
                }
            }
        }
        let sums = ranks.reduce_scatter(values, &counts);
        let own: usize = self.all.iter().filter(|s| s.trained && s.owner == self.rank).map(|s| s.len).sum();
        let (sums, present) = sums.split_at(own);
        let mut give = Give { at: 0, shards: self, sums, present, device, gradients: GradientsParams::new() };
        module.visit(&mut give);
        give.gradients
    }

    /// Returns one value per parameter, in module order, from the values of the owners.
    pub fn gather(&self, ranks: &dyn Collective, own: &[f64]) -> Vec<f64> {
        let counts = self.counts(|_| 1);
        let most = counts.iter().copied().max().unwrap_or_default();
        let mine = self.all.iter().zip(own).filter(|(shard, _)| shard.owner == self.rank).map(|(_, value)| *value);
        let mut mine: Vec<f64> = mine.collect();
        mine.resize(most, 0.0);
        let all = ranks.gather(&mine);
        let mut next: Vec<usize> = (0..self.ranks).map(|rank| rank * most).collect();
        let take = |shard: &Shard| {
            next[shard.owner] += 1;
            all[next[shard.owner] - 1]
        };
        self.all.iter().map(take).collect()
    }

    /// Sends the trained weights of this rank's parameters to all ranks, and returns the network with all new weights.
    pub fn share<M: Module>(&self, module: M, ranks: &dyn Collective) -> M {
        let counts = self.counts(|shard| if shard.trained { shard.len } else { 0 });
        let all = ranks.all_gather(self.read(&module, true), &counts);
        self.write(module, true, &counts, &all)
    }

    /// Returns the average with the values of all ranks on rank 0, and unchanged on the others.
    pub fn whole<M: Module>(&self, average: &M, ranks: &dyn Collective) -> M {
        let own: Vec<u8> = self.read(average, false).into_iter().flat_map(f32::to_le_bytes).collect();
        let parts = ranks.collect(own);
        if self.rank > 0 {
            return average.clone();
        }
        let value = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().expect("a value has four bytes"));
        let all: Vec<f32> = parts.iter().flat_map(|part| part.chunks_exact(4).map(value)).collect();
        self.write(average.clone(), false, &self.counts(|shard| shard.len), &all)
    }

    /// Reads this rank's parameters, one after the other: the trained ones, or all.
    fn read<M: Module>(&self, module: &M, trained: bool) -> Vec<f32> {
        struct Read<'a>(usize, &'a Shards, bool, Vec<Tensor<1>>);
        impl ModuleVisitor for Read<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let shard = &self.1.all[self.0];
                self.0 += 1;
                if shard.owner == self.1.rank && (shard.trained || !self.2) {
                    self.3.push(param.base().inner().reshape([shard.len]));
                }
            }
        }
        let mut own = Read(0, self, trained, Vec::new());
        module.visit(&mut own);
        read(own.3)
    }

    /// Sets the parameters of the other ranks, the trained ones or all, to the values that [`Shards::read`] returned
    /// there.
    fn write<M: Module>(&self, module: M, trained: bool, counts: &[usize], all: &[f32]) -> M {
        struct Write<'a> {
            at: usize,
            shards: &'a Shards,
            trained: bool,
            all: &'a [f32],
            /// Start of the next parameter of every rank.
            next: Vec<usize>,
        }
        impl ModuleMapper for Write<'_> {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                let shard = &self.shards.all[self.at];
                self.at += 1;
                if self.trained && !shard.trained {
                    return param;
                }
                let start = self.next[shard.owner];
                self.next[shard.owner] += shard.len;
                if shard.owner == self.shards.rank {
                    return param;
                }
                let data = TensorData::new(self.all[start..start + shard.len].to_vec(), param.lazy_shape());
                if !param.is_initialized() {
                    let device = param.lazy_device();
                    return Param::initialized(param.id, Tensor::from_data(data, (&device, DType::F32)));
                }
                param.map(|old| {
                    Tensor::from_data(data, (&old.device(), old.dtype())).set_require_grad(old.is_require_grad())
                })
            }
        }
        let next = (0..self.ranks).map(|rank| counts[..rank].iter().sum()).collect();
        module.map(&mut Write { at: 0, shards: self, trained, all, next })
    }

    /// Frees the values of the parameters that other ranks own.
    pub fn own<M: Module>(&self, average: M) -> M {
        struct Free<'a>(usize, &'a Shards);
        impl ModuleMapper for Free<'_> {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                let shard = &self.1.all[self.0];
                self.0 += 1;
                if shard.owner == self.1.rank {
                    return param;
                }
                let (shape, device) = (param.lazy_shape(), param.lazy_device());
                let mut dims = [0; D];
                dims.copy_from_slice(&shape.to_vec());
                let zeros = move |device: &Device, _| Tensor::zeros(dims, device);
                Param::uninitialized(param.id, zeros, device, false, shape)
            }
        }
        average.map(&mut Free(0, self))
    }
}

/// Reads tensors from the device, one after the other.
fn read(tensors: Vec<Tensor<1>>) -> Vec<f32> {
    if tensors.is_empty() {
        return Vec::new();
    }
    let data = Tensor::cat(tensors, 0).into_data().convert_dtype(DType::F32);
    data.try_into_vec().expect("the data were converted to f32")
}
